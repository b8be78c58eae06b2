"""What alembic runs for a migration; `grid/database.py` gives it the connection, and the transaction around it."""

from __future__ import annotations

from alembic import context

from slurm_ray_flow.grid.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
