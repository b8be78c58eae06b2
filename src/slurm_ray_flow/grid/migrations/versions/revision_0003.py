"""The table of usage, which fair shares are made of."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Float, String, Text

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "srf_usage",
        Column("cluster", Text, primary_key=True),
        Column("user", Text, primary_key=True),
        Column("campaign", String(32), primary_key=True),
        Column("virtual", Float(53), nullable=False),
        Column("largest", Float(53), nullable=False),
        Column("decayed_at", Float(53), nullable=False),
    )
