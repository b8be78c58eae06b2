"""Environments kept as one file, for file systems where the number of files is limited.

The archive is a tar that any Python reads. A head unpacks it into a private folder on its own node's disk, where many
small files are cheap, and removes that at its end: the environment moves as it was made to, for its scripts find their
Python beside them. In the folder, `owner` says which process it belongs to, as in Ray's folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Iterator, Optional

from slurm_ray_flow.remote.errors import OperationError
from slurm_ray_flow.remote.remains import note_owner

ARCHIVE = "environment.tar.gz"
"""The name of the file, beside whole.json."""
PREFIX = "srf-environment-"
_LEVEL = 3
"""Of gzip: nearly as small as the highest, in a third of the time."""


def pack(environment: Path, archive: Path) -> None:
    """Write a folder's content to one file, which is on the disk when this returns."""
    with open(archive, "xb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=_LEVEL, format=tarfile.PAX_FORMAT) as tar:
            tar.add(str(environment), arcname=".", filter=_nobodys)
        file.flush()
        os.fsync(file.fileno())


def unpacked(archive: str, scratch: Optional[str] = None) -> str:
    """Unpack an environment where only this user can read it.

    Args:
        archive: what `pack` wrote.
        scratch: a folder of this node; by default $TMPDIR, else /tmp.

    Returns:
        The environment's folder: its Python is `bin/python` in it. `remove` takes it.

    Raises:
        OperationError: it can't be read, or has no room.
    """
    folder = _make_folder(scratch)
    prefix = os.path.join(folder, "environment")
    try:
        os.mkdir(prefix, 0o700)
        with tarfile.open(archive, mode="r:gz") as tar:
            # Its links lead to the Python it was made with: outside, where a filter of Python 3.12 forbids them.
            tar.extraction_filter = lambda member, _: member
            tar.extractall(prefix, members=_inside(tar, prefix))
        if not os.path.exists(os.path.join(prefix, "bin", "python")):
            raise tarfile.TarError("it holds no Python")
    except (OSError, EOFError, tarfile.TarError) as error:
        remove(prefix)
        what = "the packed environment can't be unpacked on this node: {}".format(error)
        advice = "make room in {}, or set TMPDIR to a larger disk of the node".format(os.path.dirname(folder))
        raise OperationError(what, archive, advice, "environment") from error
    except BaseException:
        remove(prefix)
        raise
    return prefix


def remove(prefix: str) -> None:
    """Remove what `unpacked` made; nothing happens where it is gone, or is no such folder."""
    folder = os.path.dirname(os.path.abspath(prefix))
    if os.path.basename(folder).startswith(PREFIX) and not os.path.islink(folder):
        with contextlib.suppress(FileNotFoundError):
            # Renamed first: nobody starts a Python in one that is half gone.
            gone = os.path.join(os.path.dirname(folder), "." + os.path.basename(folder))
            os.rename(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder on this node's disk, for as long as the block lasts."""
    folder = _make_folder(None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _inside(tar: tarfile.TarFile, prefix: str) -> Iterator[tarfile.TarInfo]:
    """The members of our own archive: files, folders and links, each in its place, with modes only their owner has."""
    for member in tar:
        place = os.path.normpath(os.path.join(prefix, member.name))
        if place != prefix and not place.startswith(prefix + os.sep):
            raise tarfile.TarError("{} leads out of it".format(member.name))
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise tarfile.TarError("{} is no file".format(member.name))
        member.mode = 0o700 if member.isdir() else member.mode & 0o700
        member.uid, member.gid = os.getuid(), os.getgid()
        yield member


def _make_folder(scratch: Optional[str]) -> str:
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=scratch or os.environ.get("TMPDIR") or "/tmp")
    note_owner(folder)
    return folder
