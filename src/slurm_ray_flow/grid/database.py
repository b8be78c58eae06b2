"""The grid's database: where it is, its connections and transactions, its version, and its errors in our words.

SQLite syncs at each commit (`synchronous=FULL`). With NORMAL a power cut would undo the last commits: the number of a
bundle that lies on a cluster already would be given to another bundle, and outcomes would be gone that a client has
seen.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, func, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from slurm_ray_flow.blocks.catalog import catalog_file
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.grid_engine import EngineFiles
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError
from slurm_ray_flow.grid.tables import VERSION_TABLE

URL_VARIABLE = "SRF_GRID_DATABASE_URL"
"""The address of a PostgreSQL database, "postgresql://user:password@host/name": given once, it is remembered."""
BUSY_SECONDS = 30
"""How long another process's transaction is waited for."""
CONNECT_SECONDS = 10
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=ON",  # macOS: to the disk itself
    "temp_store=MEMORY",
    "cache_size=-32768",
)
WRITES = "srf_writes"
MIGRATION_LOCK = 0x5246_4752
"""PostgreSQL's advisory lock during a migration."""
NAMED_LOCK = 0x5246_4753
"""The first number of PostgreSQL's advisory locks of `Database.locking`."""


def default_url() -> str:
    """The grid's database: `$SRF_GRID_DATABASE_URL`, else `grid.db` beside the catalog of runs.

    The variable is remembered, since whoever starts the engine anew need not have it, and would find no campaigns in
    another database; "sqlite" goes back to the file.

    Raises:
        GridError: the home folder is on a network file system, and this host has no local folder yet.
    """
    kept, chosen = EngineFiles().folder / "database", os.environ.get(URL_VARIABLE, "").strip()
    if chosen == "sqlite":
        kept.unlink(missing_ok=True)
    elif chosen:
        private_folder(kept.parent)
        write_whole(kept, chosen.encode())
        return chosen
    else:
        with contextlib.suppress(FileNotFoundError):
            return kept.read_text()
    catalog = catalog_file()
    if catalog is None:
        raise GridError(
            "the grid has no place for its database: the home folder is on a network file system",
            advice=f"start the server on this host with `srf up`, or name a PostgreSQL database in ${URL_VARIABLE}",
        )
    return URL.create("sqlite", database=str(catalog.with_name("grid.db"))).render_as_string(hide_password=False)


class Database:
    """Connections to one database, for the threads of one process.

    Args:
        url: "sqlite:////folder/grid.db" or "postgresql://user:password@host/name".

    Raises:
        GridError: it is neither, or its driver is not installed. No message of this class shows a password.
    """

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        self.where = self._url.render_as_string(hide_password=True)
        self._writing = threading.Lock()
        self._engine = _sqlite(self._url) if self.is_sqlite else _postgresql(self._url)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file on this machine."""
        return self._url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Close its connections; the next transaction opens one."""
        self._engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database, beside others that write.

        Raises:
            GridError: the database can't be used.
        """
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._own_errors(), self._engine.connect().execution_options(**level) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes. On SQLite there is one at a time.

        Raises:
            GridError: the database can't be used.
        """
        with self._own_errors(), self._writing if self.is_sqlite else contextlib.nullcontext():  # noqa: SIM117
            with self._engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
                yield connection

    @contextlib.contextmanager
    def locking(self, name: str) -> Iterator[Connection]:
        """A transaction that writes, of which there is one at a time for this name.

        Raises:
            GridError: the database can't be used.
        """
        with self.writing() as connection:
            if not self.is_sqlite:  # (which has one at a time anyway)
                connection.execute(select(func.pg_advisory_xact_lock(NAMED_LOCK, func.hashtext(name))))
            yield connection

    def upsert(self, table: Table) -> Any:
        """An INSERT that can say what to do where the row is there."""
        return (sqlite.insert if self.is_sqlite else postgresql.insert)(table)

    def migrate(self) -> None:
        """Make the tables, or bring those of an earlier version to this one.

        Raises:
            GridError: the database is of a later version, or can't be used.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config(attributes={})
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        steps = ScriptDirectory.from_config(config)
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            opts = {"version_table": VERSION_TABLE}
            version = MigrationContext.configure(connection, opts=opts).get_current_revision()
            newest = steps.get_current_head()
            if version not in {None, *(step.revision for step in steps.walk_revisions())}:
                raise GridError(
                    f"the grid's database is of version {version}, and this slurm-ray-flow knows those up to {newest}",
                    where=self.where,
                    advice="use the slurm-ray-flow that made it, or a newer one",
                )
            if version != newest:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            what, advice = _explained(error)
            raise GridError(what.replace(self._url.password or "\0", "***"), where=self.where, advice=advice) from error


def _checked(text: str) -> URL:
    advice = "write postgresql://user:password@host/name"
    try:
        url = make_url(text.strip())
        backend = {"postgres": "postgresql"}.get(url.get_backend_name(), url.get_backend_name())
    except (ArgumentError, ValueError):
        raise GridError(
            "the address of the grid's database can't be read", where=f"${URL_VARIABLE}", advice=advice
        ) from None
    if backend == "sqlite" and url.database not in {None, "", ":memory:"}:
        return url.set(drivername="sqlite")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise GridError(
        "the grid keeps its tables in PostgreSQL or in a SQLite file", where=f"${URL_VARIABLE}", advice=advice
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=5, max_overflow=20)
    file = Path(url.database or "")

    @event.listens_for(engine, "do_connect")
    def _(*_: object) -> None:
        try:
            private_folder(file.parent.absolute())
        except SlurmRayFlowError as error:
            raise GridError(error.what, where=error.where, advice=error.advice) from error
        with contextlib.suppress(OSError):  # which SQLite tells better
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin below, and reads have one, too
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # A transaction that reads first and writes then would fail where another process has written meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    patience = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "tcp_user_timeout": 60_000}
    try:
        engine = create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20, connect_args=patience)
    except ModuleNotFoundError as error:
        raise GridError(
            f"PostgreSQL needs a driver that is not installed: {error.name}",
            where=f"${URL_VARIABLE}",
            advice="install slurm-ray-flow[postgres]",
        ) from None

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
            # (A laptop that sleeps within a transaction must not keep what others wait for.)
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{BUSY_SECONDS}s'")
        connection.commit()

    return engine


_KNOWN = (
    (("disk is full", "No space left", "53100"), "the disk of the grid's database is full", "free some space there"),
    (("no such table", "42P01"), "the grid's database has no tables", "start the grid's engine, which makes them"),
    (("database is locked", "55P03"), "another process has kept the grid's database locked", "try again"),
    (("malformed", "not a database"), "the grid's database is damaged", "put a copy of it in its place"),
    (("readonly", "42501", "25006"), "the grid's database can't be written", "see who may write there"),
    (("unable to open",), "the grid's database can't be opened", "see that its folder can be written"),
    (("disk I/O error",), "the disk of the grid's database has failed", "see what the system's log says of the disk"),
    (("28P01", "28000", "authentication failed"), "PostgreSQL refuses the grid's user", f"see ${URL_VARIABLE}"),
    (("23505", "UNIQUE constraint"), "the grid's database has that already", ""),
)  # fmt: skip


def _explained(error: SQLAlchemyError) -> tuple[str, str]:
    """What went wrong, and what to try."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    said = str(cause).strip() or type(cause).__name__
    told = f"{getattr(cause, 'sqlstate', None)} {said}"
    for signs, what, advice in _KNOWN:
        if any(sign in told for sign in signs):
            return f"{what}: {said}", advice
    if isinstance(error, DBAPIError) and type(cause).__name__ == "OperationalError":
        return f"the grid's database can't be reached: {said}", "see that it runs, and that this machine reaches it"
    return f"the grid's database has refused a request: {said}", ""
