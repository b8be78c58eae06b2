"""How the catalog is written: its table, its version, and what was read anew of the records."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    insert,
)
from sqlalchemy.exc import SQLAlchemyError

from slurm_ray_flow.blocks.catalog import LOCK_SECONDS, VERSION, CatalogRun

_METADATA = MetaData()
_TEXTS = ("function", "cluster", "kind", "root", "attempt", "state", "cause", "outcome")
_RUNS = Table(
    "runs",
    _METADATA,
    Column("run_id", String, primary_key=True),
    *(Column(name, String, nullable=False) for name in _TEXTS),
    Column("created", Float, nullable=False),
    *(Column(name, Float) for name in ("ended_at", "cpu_hours", "gpu_hours")),
    Column("warm", Boolean, nullable=False),
    Column("changed", Integer, nullable=False, index=True),
    Column("stamp", Integer, nullable=False),
)


def write(file: Path, runs: Sequence[CatalogRun], gone: Sequence[str]) -> None:
    """Put runs in place of those that are gone or older; where it can't be written, the catalog stays as it is."""
    engine = create_engine(
        URL.create("sqlite", database=str(file)), poolclass=NullPool, connect_args={"timeout": LOCK_SECONDS}
    )
    with contextlib.suppress(OSError, sqlite3.Error, SQLAlchemyError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))  # its user's alone, as records are
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        with engine.begin() as connection:
            _migrate(connection)
            if gone:
                connection.execute(
                    delete(_RUNS).where(_RUNS.c.run_id == bindparam("gone")), [{"gone": one} for one in gone]
                )
            if runs:
                connection.execute(insert(_RUNS).prefix_with("OR REPLACE"), [run._asdict() for run in runs])


def _migrate(connection: Connection) -> None:
    """Bring the table to our version: it can be filled from the records, so an earlier one is made anew."""
    if connection.exec_driver_sql("PRAGMA user_version").scalar() != VERSION:
        _METADATA.drop_all(connection)
        _METADATA.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
