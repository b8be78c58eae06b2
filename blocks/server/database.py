"""Where Prefect's SQLite file lies: always on a disk of the host that has the server.

SQLite must not be used on a network file system (sqlite.org/useovernet.html). Where our folder is on one, the server
works with a file in a new private folder of its host, and home has a copy, for whichever host has the server next.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.files import ServerFiles

LOCAL_DISK = "/var/tmp"  # noqa: S108 - a folder of no known name is made there
"""It outlives a restart; systemd removes there what nobody has touched for thirty days."""
NETWORK = {
    "9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "gpfs",
    "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "virtiofs", "wekafs",
}  # fmt: skip
"""File systems that more than one host may have mounted, by their names in /proc/self/mountinfo."""


def local_file(files: ServerFiles) -> Path | None:
    """The file on a local disk that the server is to work with; None where Prefect's own folder is on one."""
    if not on_network(files.prefect_home):
        return None
    folder = _noted(files)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="srf-database-", dir=LOCAL_DISK))
        if _kept(files).exists():
            _copy(_kept(files), folder / "prefect.db")
        noted = {"host": socket.gethostname(), "folder": str(folder)}
        write_whole(_note(files), json.dumps(noted).encode())
    return folder / "prefect.db"


def keep_copy(files: ServerFiles, *, ended: bool = False) -> Iterator[str]:
    """Keep a copy of the local file, if there is one, in our folder; after the server has `ended`, that alone stays."""
    folder = _noted(files)
    if folder is None or not (folder / "prefect.db").exists():
        return
    _copy(folder / "prefect.db", folder / "copy.db")
    write_whole(_kept(files), (folder / "copy.db").read_bytes())
    if ended:
        _note(files).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        yield f"the database lies in {_kept(files)}, for whichever host has the server next"


def on_network(folder: Path, mounts: str = "") -> bool:
    """Whether other hosts may have a folder's file system mounted, too; `mounts` is what /proc/self/mountinfo says."""
    with contextlib.suppress(FileNotFoundError):  # macOS has none
        mounts = mounts or Path("/proc/self/mountinfo").read_text()
    path, kind, longest = f"{os.path.realpath(folder)}/", "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape").rstrip("/") + "/"  # a space stands as \040
        if path.startswith(point) and len(point) >= longest:
            kind, longest = after.split(" ")[0], len(point)
    return kind in NETWORK


def _noted(files: ServerFiles) -> Path | None:
    """The folder on this host's disk that the last server has left, or works in."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(_note(files).read_text())
        folder = Path(noted["folder"])
        ours = not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
        return folder if noted["host"] == socket.gethostname() and ours else None
    return None


def _note(files: ServerFiles) -> Path:
    return files.folder / "database.json"


def _kept(files: ServerFiles) -> Path:
    return files.prefect_home / "prefect.db"


def _copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)
