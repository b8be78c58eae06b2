"""How often time limits have ended an item, and how long pilots last."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Float, Integer, text

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and the index of items that wait after a time limit has ended them."""
    op.add_column("srf_item", Column("interruptions", Integer, nullable=False, server_default="0"))
    op.add_column("srf_pilot", Column("seconds", Float(53)))
    interrupted = text("state = 0 AND interruptions > 0")
    op.create_index(
        "srf_item_interrupted",
        "srf_item",
        ["campaign", "number"],
        sqlite_where=interrupted,
        postgresql_where=interrupted,
    )
