"""The settings of this package's own server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.address import HOST
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, encryption_key
from slurm_ray_flow.core.errors import ServerError

LOCAL_DISK = "/var/tmp"  # noqa: S108 - a folder of no known name is made there
"""A folder that outlives a restart; systemd removes files there that are unused for thirty days."""
DATABASES = ("prefect.db", "grid.db")
"""SQLite files that lie on a local disk where the home folder is on a network file system: Prefect's, the grid's."""
NETWORK = {
    "9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "gpfs",
    "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "virtiofs", "wekafs",
}  # fmt: skip
"""File systems that more than one host may have mounted, by their names in /proc/self/mountinfo."""


def local_file(files: ServerFiles) -> Path | None:
    """The server's database file on a local disk; None where Prefect's own folder is on one."""
    if not on_network(files.prefect_home):
        return None
    folder = local_folder(files)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="srf-database-", dir=LOCAL_DISK))
        for name in DATABASES:
            if (stored := files.prefect_home / name).exists():
                _copy(stored, folder / name)
        note = {"host": socket.gethostname(), "folder": str(folder)}
        write_whole(_database_note(files), json.dumps(note).encode())
    return folder / "prefect.db"


def keep_copy(files: ServerFiles, *, ended: bool = False) -> Iterator[str]:
    """Copy the local database files, if there are any, into the server's folder; once `ended`, only the copies stay."""
    folder = local_folder(files)
    if folder is None or not (folder / DATABASES[0]).exists():
        return
    for name in DATABASES:
        if _has_changed(folder / name, files.prefect_home / name):
            _copy(folder / name, folder / "copy.db")
            write_whole(files.prefect_home / name, (folder / "copy.db").read_bytes())
    if ended:
        _database_note(files).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        yield f"the database lies in {files.prefect_home / DATABASES[0]}, for whichever host has the server next"


def on_network(folder: Path, mounts: str = "") -> bool:
    """Whether a folder is on a network file system; `mounts` is the text of /proc/self/mountinfo."""
    with contextlib.suppress(FileNotFoundError):  # macOS has none
        mounts = mounts or Path("/proc/self/mountinfo").read_text()
    path, filesystem, longest_match = f"{os.path.realpath(folder)}/", "", -1
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        mount_point = mount.split(" ")[4].encode().decode("unicode_escape").rstrip("/") + "/"  # a space is \040
        if path.startswith(mount_point) and len(mount_point) >= longest_match:
            filesystem, longest_match = source.split(" ")[0], len(mount_point)
    return filesystem in NETWORK


def local_folder(files: ServerFiles) -> Path | None:
    """The folder on this host's disk with the database of the last or the present server; None for none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(_database_note(files).read_text())
        folder = Path(note["folder"])
        is_ours = not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
        return folder if note["host"] == socket.gethostname() and is_ours else None
    return None


def _database_note(files: ServerFiles) -> Path:
    return files.folder / "database.json"


def _has_changed(database: Path, stored: Path) -> bool:
    """Whether a database has been written since its copy was."""
    written = [path.stat().st_mtime for path in (database, Path(f"{database}-wal")) if path.exists()]
    return bool(written) and (not stored.exists() or max(written) >= stored.stat().st_mtime)


def _copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


LEASES_ON_DISK = "prefect.server.concurrency.lease_storage.filesystem"

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # SQLite answers five times as many runs when rows are written in batches.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    # With leases in memory, slots would stay taken for ever after a restart of the server.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_ON_DISK,
    # By default only events are removed, and the database grows with every run.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # The "V2" pages report each visit to Prefect's makers from the browser, and no setting turns that off.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PYTHONUNBUFFERED": "1",
}

DATABASE_VARIABLE = "SRF_DATABASE_URL"
"""The address of a PostgreSQL database, "postgresql://user:password@host/name": given once, it is remembered."""
DATABASE_SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def server_environment(files: ServerFiles, port: int) -> dict[str, str]:
    """The whole environment of the server's process.

    It leaves out the caller's PREFECT_ variables, which are meant for flows, since the server outlives its caller, and
    the clusters' passwords, which only log-ins need. `SRF_DATABASE_URL` names a database other than SQLite. Secrets are
    passed by variables, since every user of the machine can read arguments.
    """
    inherited = {name: value for name, value in os.environ.items() if not _is_withheld(name)}
    return {
        **inherited,
        **SETTINGS,
        "PREFECT_HOME": str(files.prefect_home),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(files.user_interface),
        "PREFECT_SERVER_API_AUTH_STRING": auth_string(files),
        "PREFECT_API_AUTH_STRING": auth_string(files),
        "PREFECT_SERVER_ENCRYPTION_KEY": encryption_key(files),
        **_database(files),
    }


def _database(files: ServerFiles) -> dict[str, str]:
    """The address of Prefect's database; by default a SQLite file in its folder."""
    url = os.environ.get(DATABASE_VARIABLE, "")
    if url == "sqlite":
        files.database.unlink(missing_ok=True)
        return {}
    if url:
        url = checked_database(url)
        write_whole(files.database, url.encode())
    else:
        with contextlib.suppress(FileNotFoundError):
            url = files.database.read_text()
    if not url and (file := local_file(files)):
        url = f"sqlite+aiosqlite:///{file}"
    return {DATABASE_SETTING: url} if url else {}


def checked_database(url: str) -> str:
    """The address of a database, checked, in Prefect's form.

    Raises:
        ServerError: it is no address of PostgreSQL. The error does not show it, because it may have a password.
    """
    match = re.fullmatch(r"postgres(?:ql)?(?:\+asyncpg)?(://.+)", url.strip())
    if match is None:
        advice = "write postgresql://user:password@host/name, or sqlite for Prefect's own file"
        raise ServerError(f"{DATABASE_VARIABLE} is no address of a PostgreSQL database", advice=advice)
    return f"postgresql+asyncpg{match[1]}"


def _is_withheld(name: str) -> bool:
    return name.startswith("PREFECT_") or name.endswith("_PASSWORD")
