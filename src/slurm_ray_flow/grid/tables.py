"""The tables of the grid. `migrations/` makes them; a test sees that both say the same.

Their names have a prefix, since a lab may give the grid the database that Prefect has. Items are named by the number
of their campaign's row, not by its id: a million rows of 32 more bytes would be twice as large.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()
Key = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up only what is of the type INTEGER."""
VERSION_TABLE = "srf_grid_version"

campaigns = Table(
    "srf_campaign",
    metadata,
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
    Column("resubmitted", BigInteger, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)

shares = Table(
    "srf_campaign_cluster",
    metadata,
    Column("campaign", BigInteger, primary_key=True, autoincrement=False),
    Column("cluster", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("prepared", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("mean_seconds", Float(53)),
)

items = Table(
    "srf_item",
    metadata,
    Column("campaign", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("state", SmallInteger, nullable=False),
    Column("seconds", Float(53)),
    Column("place", BigInteger),
    Column("length", BigInteger),
    Column("attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False, server_default="0"),
    Column("bundle", BigInteger, nullable=False),
    Column("not_before", Float(53), nullable=False),
    Column("error", Text),
    Column("log_pilot", BigInteger),
    Column("log_worker", Integer),
    Column("log_start", BigInteger),
    Column("log_length", BigInteger),
    sqlite_with_rowid=False,
)
WAITING = text("state = 0")
"""Conditions of indexes; a query has one word for word, so that SQLite uses the index."""
Index(
    "srf_item_waiting",
    items.c.campaign,
    items.c.attempts,
    items.c.not_before,
    items.c.number,
    sqlite_where=WAITING,
    postgresql_where=WAITING,
)

INTERRUPTED = text("state = 0 AND interruptions > 0")
Index(
    "srf_item_interrupted",
    items.c.campaign,
    items.c.number,
    sqlite_where=INTERRUPTED,
    postgresql_where=INTERRUPTED,
)

bundles = Table(
    "srf_bundle",
    metadata,
    Column("id", Key, primary_key=True),
    Column("campaign", BigInteger, nullable=False, index=True),
    Column("pilot", BigInteger, nullable=False),
    Column("numbers", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("ended", BigInteger, nullable=False),
    Column("live", SmallInteger, nullable=False),
    sqlite_autoincrement=True,
)
LIVE = text("live = 1")
Index("srf_bundle_live", bundles.c.pilot, sqlite_where=LIVE, postgresql_where=LIVE)

pilots = Table(
    "srf_pilot",
    metadata,
    Column("id", Key, primary_key=True),
    Column("campaign", BigInteger, nullable=False, index=True),
    Column("run_id", Text, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("results_offset", BigInteger, nullable=False),
    Column("seconds", Float(53)),
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

events = Table(
    "srf_event",
    metadata,
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
usage = Table(
    "srf_usage",
    metadata,
    Column("cluster", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("campaign", String(32), primary_key=True),
    Column("virtual", Float(53), nullable=False),
    Column("largest", Float(53), nullable=False),
    Column("decayed_at", Float(53), nullable=False),
)
"""Virtual times (`core/grid/fairness.py`); a user's own has "" as its campaign."""

users = Table(
    "srf_user",
    metadata,
    Column("name", Text, primary_key=True),
    Column("token", String(64), nullable=False),
    Column("weight", Float(53), nullable=False),
    Column("is_admin", SmallInteger, nullable=False),
    Column("engine", Text, nullable=False),
    Column("seen_at", Float(53), nullable=False),
)
"""Those who share the database. A token is there as its SHA-256 alone; "" lets nobody in."""

claims = Table(
    "srf_claim",
    metadata,
    Column("cluster", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("claims", Text, nullable=False),
    Column("pilots", Integer, nullable=False),
    Column("seen_at", Float(53), nullable=False),
)
"""What the engine of each user has and wants on a cluster that has a cap (`grid/sharing.py`)."""

caps = Table(
    "srf_cap",
    metadata,
    Column("cluster", Text, primary_key=True),
    Column("cap", Integer, nullable=False),
)
"""The most pilots of all campaigns together on a cluster."""

drains = Table(
    "srf_drain",
    metadata,
    Column("cluster", Text, primary_key=True),
    Column("user", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", Float(53), nullable=False),
)
"""Clusters where no campaign gets a pilot, by their names without their kinds."""

OPEN = text("open = 1")
Index(
    "srf_event_open",
    events.c.campaign,
    events.c.cluster,
    events.c.code,
    events.c.group,
    unique=True,
    sqlite_where=OPEN,
    postgresql_where=OPEN,
)
