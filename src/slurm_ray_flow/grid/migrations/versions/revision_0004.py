"""The tables of users, of what their engines want, and of clusters' caps."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Float, Integer, SmallInteger, String, Text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "srf_user",
        Column("name", Text, primary_key=True),
        Column("token", String(64), nullable=False),
        Column("weight", Float(53), nullable=False),
        Column("is_admin", SmallInteger, nullable=False),
        Column("engine", Text, nullable=False),
        Column("seen_at", Float(53), nullable=False),
    )
    op.create_table(
        "srf_claim",
        Column("cluster", Text, primary_key=True),
        Column("user", Text, primary_key=True),
        Column("claims", Text, nullable=False),
        Column("pilots", Integer, nullable=False),
        Column("seen_at", Float(53), nullable=False),
    )
    op.create_table("srf_cap", Column("cluster", Text, primary_key=True), Column("cap", Integer, nullable=False))
