"""Where the output of an item's last attempt is, and how many items were resubmitted."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("srf_campaign", Column("resubmitted", BigInteger, nullable=False, server_default="0"))
    for column in (
        Column("log_pilot", BigInteger),
        Column("log_worker", Integer),
        Column("log_start", BigInteger),
        Column("log_length", BigInteger),
    ):
        op.add_column("srf_item", column)
