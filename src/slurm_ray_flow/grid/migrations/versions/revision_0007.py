"""The table of clusters where no campaign gets a pilot."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Float, Text

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "srf_drain",
        Column("cluster", Text, primary_key=True),
        Column("user", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("since", Float(53), nullable=False),
    )
