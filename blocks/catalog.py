"""The catalog: what home knows of its runs in one table of SQLite, so that ten thousand of them are listed at once.

Records stay the truth. Whoever lists runs compares the table with the folder of records, and reads those that have
changed since; a table that is missing, damaged, locked or a later version's costs time and nothing else. It is read
without SQLAlchemy, whose import takes longer than the list; `catalog_table.py` writes it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.server.files import server_files
from slurm_ray_flow.blocks.server.settings import local_folder, on_network
from slurm_ray_flow.core.efficiency import ResourceUse
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.run import RunRecord, count_tries
from slurm_ray_flow.core.text import encodable

VERSION = 1
"""Of the table's form; one of an earlier version is made anew from the records."""
LOCK_SECONDS = 0.5
"""How long somebody else's writing is waited for."""


class CatalogRun(NamedTuple):
    """A run as the catalog has it; the names are those of the table's columns.

    Attributes:
        attempt: the id of its newest try.
        state: the one in which it has ended; "" where home knows of no end.
        cause: why it has no value.
        outcome: "value", "exception" of the function's own, or "" for neither.
        created, ended_at: seconds since 1970; None where that is not known.
        cpu_hours, gpu_hours: what its call occupied; None where that is not known.
        warm: whether its allocation may wait for a next call.
        changed, stamp: when its record was written, and its file changed, in nanoseconds.
    """

    run_id: str
    function: str
    cluster: str
    kind: str
    root: str
    attempt: str
    state: str
    cause: str
    outcome: str
    created: float
    ended_at: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    warm: bool
    changed: int
    stamp: int

    @property
    def record(self) -> RunRecord:
        """What home remembers of the run.

        Raises:
            UnknownRunError: nothing any more.
        """
        return store.find_record(self.run_id)

    @property
    def tries(self) -> int:
        """How many tries it has had."""
        return count_tries(self.run_id, self.attempt)


def runs() -> list[CatalogRun]:
    """All runs that home remembers, the newest first."""
    return _compared(catalog_file())


def rebuild() -> None:
    """Make the catalog anew from the records."""
    file = catalog_file()
    if file is not None:
        remove(file)
        _compared(file)


def refresh() -> Iterator[str]:
    """Bring the catalog up to date; for the server's supervisor, which has nothing to say of it."""
    runs()
    yield from ()


def catalog_file() -> Path | None:
    """Where the catalog lies: at home, or beside Prefect's database in this host's local folder; None for nowhere."""
    if not on_network(home()):
        return home() / "catalog.db"
    folder = local_folder(server_files())
    return folder / "catalog.db" if folder else None


def remove(file: Path) -> None:
    """Remove a catalog with what SQLite keeps beside it."""
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        with contextlib.suppress(OSError):
            file.with_name(name).unlink()


def _compared(file: Path | None) -> list[CatalogRun]:
    """The runs of the catalog, and of the records that are newer than it; those go into it where it can be written."""
    files = dict(_record_files())
    listed, writable = _listed(file) if file else ([], False)
    kept = [run for run in listed if files.get(run.run_id) == (run.changed, run.stamp)]
    current = {run.run_id for run in kept}
    fresh = [run for name in files if name not in current and (run := _catalogued(name, *files[name]))]
    old = [run.run_id for run in listed if run.run_id not in current]
    if file is not None and writable and (fresh or old):
        from slurm_ray_flow.blocks import catalog_table

        catalog_table.write(file, fresh, old)
    return sorted([*kept, *fresh], key=lambda run: (run.changed, run.run_id), reverse=True) if fresh else kept


def _listed(file: Path) -> tuple[list[CatalogRun], bool]:
    """The runs in a catalog, the newest first; and whether it may be written."""
    query = f"SELECT {', '.join(CatalogRun._fields)} FROM runs ORDER BY changed DESC, run_id DESC"  # noqa: S608 - our own names
    try:
        if not file.exists():
            return [], True
        with contextlib.closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            rows = connection.execute(query).fetchall() if version == VERSION else []
            return list(map(CatalogRun._make, rows)), version <= VERSION
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return [], False
        remove(file)
    except (sqlite3.Error, OSError):
        remove(file)
    return [], True


def _record_files() -> Iterator[tuple[str, tuple[int, int]]]:
    """The runs whose records lie at home, with the times of their files."""
    with contextlib.suppress(FileNotFoundError), os.scandir(home() / "runs") as entries:
        for entry in entries:
            if not entry.name.endswith(".json") or entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except OSError:  # it has gone meanwhile
                continue
            yield entry.name[: -len(".json")], (status.st_mtime_ns, status.st_ctime_ns)


def _catalogued(run_id: str, changed: int, stamp: int) -> CatalogRun | None:
    """A run as the catalog shall have it; None where its record can't be read."""
    record = store.known_record(run_id)
    if record is None:
        return None
    use = ResourceUse.from_event(record.usage)
    outcomes = {"succeeded": "value", "failed": "exception" if record.failure_cause == "user_code" else ""}
    return CatalogRun(
        run_id=encodable(run_id),
        function=encodable(record.function),
        cluster=encodable(record.cluster),
        kind=encodable(record.kind),
        root=encodable(record.root),
        attempt=encodable(record.attempt),
        state=record.ended,
        cause=encodable(record.failure_cause),
        outcome=outcomes.get(record.ended, ""),
        created=record.created,
        ended_at=record.ended_at or None,
        cpu_hours=use.wall * use.cpus / 3600 if use else None,
        gpu_hours=use.wall * record.gpus / 3600 if use else None,
        warm=record.warm,
        changed=changed,
        stamp=stamp,
    )
