"""The manifest of a snapshot, its entries, and the listing whose digest names it."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.text import printable


class Entry(NamedTuple):
    """One file or link of a snapshot. A tuple of plain values, because a project has thousands of them.

    Attributes:
        place: its path in the snapshot, "project/…" or "outside/<n>/…".
        file: its path at home.
        size: bytes.
        mtime_ns: the time of its last change.
        mode: permission bits at home.
        sha256: the digest of a file's content, or of a link's text.
        link: the text of a link inside the snapshot, relative to the link's folder; None for a file.
    """

    place: str
    file: str
    size: int
    mtime_ns: int
    mode: int
    sha256: str
    link: str | None = None

    @property
    def source(self) -> Path:
        """The file at home."""
        return Path(self.file)

    @property
    def record(self) -> str:
        """The entry's line in the listing: content, kind (file, executable, link), place."""
        kind = "l" if self.link is not None else "x" if self.mode & 0o111 else "f"
        return f"{self.sha256} {kind} {_quoted_place(self.place)}"


class LeftOut(NamedTuple):
    """A file of a package that stays at home.

    Attributes:
        file: its path, relative to the project if it lies in it; a folder ends with a slash.
        size: bytes; 0 for a folder.
        why: the reason.
    """

    file: str
    size: int
    why: str


@dataclass(frozen=True)
class Manifest:
    """The content of a snapshot.

    Attributes:
        entries: files and links, sorted by place.
        roots: (place, folder at home) of each tree that the places come from.
        path: the entries for `sys.path`, in order, relative to the snapshot.
        working_directory: where the function runs, relative to the snapshot.
        findings: messages about files that were left out, or are sent although .gitignore names them.
        left: the files of packages that stay at home.
    """

    entries: tuple[Entry, ...]
    roots: tuple[tuple[str, str], ...]
    path: tuple[str, ...]
    working_directory: str
    findings: tuple[str, ...] = ()
    left: tuple[LeftOut, ...] = ()

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders that must be there whether or not a file lies in them, sorted."""
        return tuple(sorted({self.working_directory, *self.path}))

    @cached_property
    def records(self) -> tuple[str, ...]:
        """The lines of the listing: one an entry, in their order, then the folders."""
        folders = (f"{'':-<64} d {_quoted_place(folder)}" for folder in self.folders)
        return (*(entry.record for entry in self.entries), *folders)

    @cached_property
    def listing(self) -> bytes:
        """The text whose digest names the snapshot: contents, executable bits, links and places, but no times."""
        return ("\n".join(self.records) + "\n").encode("ascii")

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the listing, in hexadecimal."""
        return hashlib.sha256(self.listing).hexdigest()

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries if entry.link is None)


def _quoted_place(place: str) -> str:
    if place.isascii() and place.isprintable() and "%" not in place:
        return place
    return quote_from_bytes(place.encode("utf-8", "surrogateescape"), safe="/ ")


Hashes = MutableMapping[str, tuple[int, int, int, int, str]]
"""A cache by path: mtime and ctime in nanoseconds, size, inode, SHA-256. The caller keeps it."""

_SETTLED = 2_000_000_000
_CHUNK = 1 << 20


def fingerprint(file: str, status: os.stat_result, hashes: Hashes) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Args:
        file: its path.
        status: the result of `os.stat` for it.
        hashes: the cache of digests, to which a new one is added.

    Raises:
        SyncError: the file can't be read.
    """
    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    cached = hashes.get(file)
    if cached is not None and cached[:4] == stamp:
        return cached[4]
    digest = _hash_content(file, status)
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


def _hash_content(file: str, status: os.stat_result) -> str:
    digest = hashlib.sha256()
    try:
        with Path(file).open("rb", buffering=0) as stream:
            while chunk := stream.read(min(_CHUNK, status.st_size + 1)):
                digest.update(chunk)
    except OSError as problem:
        raise unreadable(file, problem) from problem
    return digest.hexdigest()
