"""Snapshots of a project's files: the folder `<digest>`, and beside it `<digest>.list`, the listing with that digest.

A snapshot is made in a temporary folder `.<digest>.<random>`, checked, and renamed when it is complete. Its files and
folders are read-only, since hard links share its files with other snapshots; only the empty `__pycache__` folders can
be written to, for Python's bytecode.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import unquote_to_bytes

from slurm_ray_flow.remote.shared import tree
from slurm_ray_flow.remote.shared.files import private_folder, sync, write_whole
from slurm_ray_flow.remote.shared.protocol import OperationError

KIND, PLACE = 65, 67
"""The columns of a line where the kind and the path begin."""


class ListingLine(NamedTuple):
    """One line of a listing: the content's SHA-256, the kind, and the path in the snapshot, without escapes."""

    sha256: str
    kind: str
    place: str

    @property
    def folder(self) -> str:
        """The path of the folder around it."""
        return self.place.rpartition("/")[0]


def read(record: str) -> ListingLine:
    """Parse a line."""
    place = record[PLACE:]
    if "%" in place:
        place = os.fsdecode(unquote_to_bytes(place))
    return ListingLine(record[: KIND - 1], record[KIND], place)


def by_place(records: Iterable[str]) -> Dict[str, str]:
    """Lines by their escaped path."""
    return {record[PLACE:]: record for record in records}


def patched(earlier: Iterable[str], new: Sequence[str], gone: Iterable[str]) -> List[str]:
    """The lines of a listing that is given by its difference to an earlier one.

    Args:
        earlier: the earlier listing's lines.
        new: lines that it does not have.
        gone: escaped paths that are removed.
    """
    lines = by_place(earlier)
    for place in gone:
        lines.pop(place, None)
    lines.update(by_place(new))
    return sorted(lines.values(), key=_sort_key)


def _sort_key(record: str) -> "tuple[bool, str]":
    line = read(record)
    return line.kind == "d", line.place


EARLIER_COUNT = 2
"""The number of earlier snapshots that home gets the listings of; more would have few other files."""
LARGEST_LISTING = 512 * 1024 * 1024
"""The most bytes of listings, enough for some million files."""
_CHUNK = 1024 * 1024


def begin(folder: str, digest: str, beside: str, roots: List[str], stale_minutes: float) -> bool:
    """Whether a snapshot exists already; if not, make the temporary folder for it.

    Args:
        folder: the project's folder.
        digest: the snapshot.
        beside: the name of the temporary folder.
        roots: folders to make in the temporary folder.
        stale_minutes: temporary folders of broken transfers are removed when unchanged for so long.
    """
    if os.path.isdir(os.path.join(folder, digest)):
        with contextlib.suppress(FileNotFoundError):  # a snapshot in use does not expire
            os.utime(_listing_path(folder, digest))
        return True
    private_folder(folder)
    _remove_stale(folder, time.time() - stale_minutes * 60)
    for root in roots:
        private_folder(os.path.join(folder, beside, root))
    return False


def earlier(folder: str, digest: str) -> bytes:
    """The listings of the newest snapshots by digest, as compressed JSON; empty if this snapshot exists."""
    if os.path.isdir(os.path.join(folder, digest)):
        return b""
    digests: Dict[str, str] = {}
    for name in _newest_first(folder):
        with contextlib.suppress(FileNotFoundError), open(_listing_path(folder, name), encoding="ascii") as stream:
            digests[name] = stream.read()
        if len(digests) == EARLIER_COUNT:
            break
    return zlib.compress(json.dumps(digests).encode())


def _newest_first(folder: str) -> List[str]:
    times = {}
    for name in os.listdir(folder):
        digest = name[: -len(".list")]
        if name.endswith(".list") and name[0] != "." and os.path.isdir(os.path.join(folder, digest)):
            with contextlib.suppress(FileNotFoundError):  # a clean-up was faster
                times[digest] = os.path.getmtime(os.path.join(folder, name))
    return sorted(times, key=lambda digest: times[digest], reverse=True)


def finish(folder: str, digest: str, beside: str, data: bytes) -> Optional[List[str]]:
    """Add the missing files, check the transferred ones, and rename the folder to the snapshot's name.

    Args:
        folder, digest, beside: as for `begin`.
        data: the result of `packed`.

    Returns:
        The files that differ from the listing; if there are none, the snapshot is complete. None if the earlier
        snapshot that the listing is based on is gone.
    """
    patch, contents = _unpacked(data)
    with _locked(folder, beside):
        if os.path.isdir(os.path.join(folder, digest)):  # home repeats the operation, or another launch was first
            _discard(folder, beside)
            return []
        try:
            records = _records(folder, digest, patch)
            if patch["inline"] is not None:
                _add_files(folder, beside, records, patch, contents)
        except FileNotFoundError:
            return None
        target = os.path.join(folder, beside)
        wrong_files = _wrong_files(target, records, patch["check"])
        if not wrong_files:
            sync(target, _transferred(patch, records))
            _publish(folder, digest, beside, records)
        return wrong_files


def discard(folder: str, beside: str) -> None:
    """Remove the temporary folder of an unfinished snapshot."""
    if os.path.isdir(folder):
        _discard(folder, beside)


def packed(
    earlier: str,
    new: Sequence[str],
    gone: Sequence[str],
    check: Sequence[str],
    inline: Optional[Sequence[Tuple[bytes, int]]] = None,
) -> bytes:
    """The `data` of `finish`.

    Args:
        earlier: the digest of the snapshot that the listing is based on; "" for none.
        new: the lines of the listing that the earlier one does not have.
        gone: the earlier listing's escaped paths that are removed.
        check: escaped paths of the files whose content is checked.
        inline: the content of each file and link in `new`, with its time in nanoseconds; the earlier snapshot has the
            others. None if rsync has brought all files.
    """
    sizes = None if inline is None else [(len(content), mtime_ns) for content, mtime_ns in inline]
    patch = {"earlier": earlier, "new": list(new), "gone": list(gone), "check": list(check), "inline": sizes}
    return zlib.compress(b"\n".join([json.dumps(patch).encode(), b"".join(content for content, _ in inline or ())]))


def unzipped(data: bytes) -> bytes:
    """Decompress data of zlib's.

    Raises:
        ValueError: it is damaged, incomplete, or larger than `LARGEST_LISTING`.
    """
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, LARGEST_LISTING)
    except zlib.error as error:
        raise ValueError("it is damaged: {}".format(error)) from error
    if not stream.eof:
        raise ValueError("it is cut short, or more than {} bytes".format(LARGEST_LISTING))
    return content


def _unpacked(data: bytes) -> Tuple[Dict[str, Any], bytes]:
    patch, _, contents = unzipped(data).partition(b"\n")
    return json.loads(patch), contents


def _records(folder: str, digest: str, patch: Dict[str, Any]) -> List[str]:
    earlier_records: List[str] = []
    if patch["earlier"]:
        with open(_listing_path(folder, patch["earlier"]), encoding="ascii") as stream:
            earlier_records = stream.read().splitlines()
    records = patched(earlier_records, patch["new"], patch["gone"])
    if hashlib.sha256(_listing_text(records)).hexdigest() != digest:
        raise OperationError(
            "the listing is not the one that names the snapshot", _listing_path(folder, digest), "launch again"
        )
    return records


def _add_files(folder: str, beside: str, records: List[str], patch: Dict[str, Any], contents: bytes) -> None:
    base, target = os.path.join(folder, patch["earlier"]), os.path.join(folder, beside)
    new = set(patch["new"])
    lines = [read(record) for record in records if record[KIND] != "d"]
    for inner in {line.folder for line in lines}:
        os.makedirs(os.path.join(target, inner), 0o700, exist_ok=True)
    for line in (read(record) for record in records if record[KIND] != "d" and record not in new):
        _link_or_copy(os.path.join(base, line.place), os.path.join(target, line.place), line.kind)
    start = 0
    sizes = iter(patch["inline"])
    for line in (read(record) for record in patch["new"] if record[KIND] != "d"):
        size, mtime_ns = next(sizes)
        _write(os.path.join(target, line.place), line.kind, contents[start : start + size], mtime_ns)
        start += size


def _link_or_copy(source: str, target: str, kind: str) -> None:
    with contextlib.suppress(FileExistsError):  # home repeats the operation
        if kind == "l":
            os.symlink(os.readlink(source), target)
            return
        try:
            os.link(source, target)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:  # a file system without hard links, or with no more for this file
            shutil.copy2(source, target)


def _write(path: str, kind: str, content: bytes, mtime_ns: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # an incomplete file of an interrupted transfer
        os.unlink(path)
    if kind == "l":
        os.symlink(content, os.fsencode(path))
        return
    mode = 0o500 if kind == "x" else 0o400
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(content)
        os.utime(stream.fileno(), ns=(mtime_ns, mtime_ns))


def _transferred(patch: Dict[str, Any], records: List[str]) -> List[str]:
    """The paths of the transferred files; the others are links to an earlier snapshot's."""
    lines = by_place(records)
    new = patch["new"] if patch["inline"] is not None else [lines[place] for place in patch["check"]]
    return [line.place for line in map(read, new) if line.kind in "fx"]


def _wrong_files(target: str, records: List[str], check: List[str]) -> List[str]:
    lines = by_place(records)
    return [place for place in check if not _has_digest(target, read(lines[place]))]


def _has_digest(target: str, line: ListingLine) -> bool:
    digest = hashlib.sha256()
    with open(os.path.join(target, line.place), "rb", buffering=0) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            if not chunk:
                return digest.hexdigest() == line.sha256
            digest.update(chunk)


def _publish(folder: str, digest: str, beside: str, records: List[str]) -> None:
    target = os.path.join(folder, beside)
    lines = [read(record) for record in records]
    folders = {line.place for line in lines if line.kind == "d"}
    folders |= {f"{line.folder}/__pycache__" for line in lines if line.kind != "d" and line.place.endswith(".py")}
    for inner in folders:
        os.makedirs(os.path.join(target, inner), 0o700, exist_ok=True)
    for path, _, _ in os.walk(target, topdown=False):
        if os.path.basename(path) != "__pycache__":
            os.chmod(path, 0o500)
    write_whole(_listing_path(folder, digest), _listing_text(records))
    try:
        os.rename(target, os.path.join(folder, digest))
    except OSError:
        if not os.path.isdir(os.path.join(folder, digest)):
            raise
        _discard(folder, beside)  # another launch was first


def _listing_text(records: List[str]) -> bytes:
    return ("\n".join(records) + "\n").encode("ascii")


def _listing_path(folder: str, digest: str) -> str:
    return os.path.join(folder, digest + ".list")


def _discard(folder: str, beside: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        tree.remove(folder, beside)


@contextlib.contextmanager
def _locked(folder: str, beside: str) -> Iterator[None]:
    """Lock the temporary folder: when home repeats an operation, the first one may still be under way."""
    try:
        descriptor = os.open(os.path.join(folder, beside), os.O_RDONLY)
    except FileNotFoundError:  # it has been renamed already
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(folder: str, oldest: float) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith(".") and os.path.isdir(path) and not os.path.islink(path) and _last_change(path) < oldest:
            with contextlib.suppress(OSError, tree.NotOurs):  # another launch removes it, too
                tree.remove(folder, name)


def _last_change(path: str) -> float:
    """The time of the last change of a folder or a file in it."""
    paths = (os.path.join(folder, name) for folder, folders, files in os.walk(path) for name in (".", *files))
    latest = 0.0
    for inner in paths:
        with contextlib.suppress(FileNotFoundError):
            latest = max(latest, os.lstat(inner).st_ctime)
    return latest


OPERATIONS: Dict[str, Any] = {
    "snapshots.begin": begin,
    "snapshots.earlier": earlier,
    "snapshots.finish": finish,
    "snapshots.discard": discard,
}
