"""The tables of campaigns, items, bundles, pilots and events."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, SmallInteger, String, Text, text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Key = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    _campaigns()
    _items()
    _bundles()
    _pilots()
    _events()


def _campaigns() -> None:
    op.create_table(
        "srf_campaign",
        Column("key", Key, primary_key=True),
        Column("id", String(32), nullable=False, unique=True),
        Column("name", Text, nullable=False),
        Column("user", Text, nullable=False),
        Column("function", Text, nullable=False),
        Column("function_digest", Text, nullable=False),
        Column("arguments_digest", Text, nullable=False),
        Column("options", Text, nullable=False),
        Column("weight", Float(53), nullable=False),
        Column("state", String(16), nullable=False),
        Column("reason", Text, nullable=False),
        Column("created", Float(53), nullable=False),
        Column("ended_at", Float(53)),
        Column("total", BigInteger, nullable=False),
        Column("next_number", BigInteger, nullable=False),
        Column("succeeded", BigInteger, nullable=False),
        Column("failed", BigInteger, nullable=False),
        Column("cancelled", BigInteger, nullable=False),
        Column("waiting", BigInteger, nullable=False),
        Column("retries", Integer, nullable=False),
        Column("max_failures", BigInteger),
        Column("max_pilots", Integer, nullable=False),
        Column("outcomes_size", BigInteger, nullable=False),
        Column("flow_run_id", Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "srf_campaign_cluster",
        Column("campaign", BigInteger, primary_key=True, autoincrement=False),
        Column("cluster", Text, primary_key=True),
        Column("position", Integer, nullable=False),
        Column("prepared", Text, nullable=False),
        Column("options", Text, nullable=False),
        Column("state", String(16), nullable=False),
        Column("reason", Text, nullable=False),
        Column("mean_seconds", Float(53)),
    )


def _items() -> None:
    op.create_table(
        "srf_item",
        Column("campaign", BigInteger, primary_key=True, autoincrement=False),
        Column("number", BigInteger, primary_key=True, autoincrement=False),
        Column("state", SmallInteger, nullable=False),
        Column("seconds", Float(53)),
        Column("place", BigInteger),
        Column("length", BigInteger),
        Column("attempts", Integer, nullable=False),
        Column("crashes", Integer, nullable=False),
        Column("bundle", BigInteger, nullable=False),
        Column("not_before", Float(53), nullable=False),
        Column("error", Text),
        sqlite_with_rowid=False,
    )
    waiting = text("state = 0")
    op.create_index(
        "srf_item_waiting",
        "srf_item",
        ["campaign", "attempts", "not_before", "number"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )


def _bundles() -> None:
    op.create_table(
        "srf_bundle",
        Column("id", Key, primary_key=True),
        Column("campaign", BigInteger, nullable=False, index=True),
        Column("pilot", BigInteger, nullable=False),
        Column("numbers", Text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("ended", BigInteger, nullable=False),
        Column("live", SmallInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    live = text("live = 1")
    op.create_index("srf_bundle_live", "srf_bundle", ["pilot"], sqlite_where=live, postgresql_where=live)


def _pilots() -> None:
    op.create_table(
        "srf_pilot",
        Column("id", Key, primary_key=True),
        Column("campaign", BigInteger, nullable=False, index=True),
        Column("run_id", Text, nullable=False),
        Column("cluster", Text, nullable=False),
        Column("state", String(16), nullable=False),
        Column("results_offset", BigInteger, nullable=False),
        Column("workers", Integer, nullable=False),
        Column("created", Float(53), nullable=False),
        Column("started_at", Float(53)),
        Column("ended_at", Float(53)),
        Column("cause", Text, nullable=False),
        Column("message", Text, nullable=False),
        Column("succeeded", BigInteger, nullable=False),
        Column("failed", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )


def _events() -> None:
    op.create_table(
        "srf_event",
        Column("id", Key, primary_key=True),
        Column("campaign", String(32), nullable=False),
        Column("cluster", Text, nullable=False),
        Column("level", String(16), nullable=False),
        Column("code", Text, nullable=False),
        Column("group", Text, nullable=False),
        Column("message", Text, nullable=False),
        Column("count", BigInteger, nullable=False),
        Column("first_at", Float(53), nullable=False),
        Column("last_at", Float(53), nullable=False),
        Column("open", SmallInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    is_open = text("open = 1")
    op.create_index(
        "srf_event_open",
        "srf_event",
        ["campaign", "cluster", "code", "group"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
