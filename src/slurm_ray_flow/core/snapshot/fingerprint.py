"""The digest of a file's content, read again only when the file was touched."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import MutableMapping
from pathlib import Path

from slurm_ray_flow.core.errors import SyncError

Hashes = MutableMapping[str, tuple[int, int, int, int, str]]
"""What is known of files by their path: mtime and ctime in nanoseconds, size, inode, SHA-256. The caller keeps it."""

_SETTLED = 2_000_000_000
_CHUNK = 1 << 20


def fingerprint(file: str, status: os.stat_result, hashes: Hashes) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Args:
        file: its path.
        status: what `os.stat` says of it now.
        hashes: what is known; what is learned is added.

    Raises:
        SyncError: it can't be read.
    """
    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    known = hashes.get(file)
    if known is not None and known[:4] == stamp:
        return known[4]
    digest = _read(file, status)
    # A file system's clock is coarse: a file that was just written may be written again without a new time.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED:
        hashes[file] = (*stamp, digest)
    return digest


def unreadable(file: str, problem: OSError) -> SyncError:
    """The error for a file or folder that the user's own account can't read."""
    try:
        mode = stat.filemode(Path(file).lstat().st_mode)
    except OSError:
        mode = "its mode can't be read"
    return SyncError(
        f"{printable(file)} can't be read: {problem.strerror}.",
        where=f"{printable(file)} ({mode})",
        advice="Make it readable (chmod u+r), or leave it out: by .gitignore, or by a narrower include.",
    )


def printable(file: str) -> str:
    """A path as it can be shown: names that are not UTF-8 have their bytes escaped."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _read(file: str, status: os.stat_result) -> str:
    digest = hashlib.sha256()
    try:
        with Path(file).open("rb", buffering=0) as stream:
            while chunk := stream.read(min(_CHUNK, status.st_size + 1)):
                digest.update(chunk)
    except OSError as problem:
        raise unreadable(file, problem) from problem
    return digest.hexdigest()
