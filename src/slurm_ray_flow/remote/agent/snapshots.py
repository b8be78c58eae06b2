"""Snapshots of a project's files: `<folder>/<digest>/`, and beside it `<digest>.list`, the listing that names it.

A snapshot grows beside, in `.<digest>.<random>`, is checked, and gets its name when it is whole. Nothing in it can be
written by accident, files and folders alike, because its files are shared with other snapshots by hard links; only the
empty `__pycache__` folders are open, so that Python keeps its bytecode.
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
"""Where in a line they begin."""


class ListingLine(NamedTuple):
    """One line: the content's SHA-256, the kind, and the place as the file system has it."""

    sha256: str
    kind: str
    place: str

    @property
    def folder(self) -> str:
        """Where it lies."""
        return self.place.rpartition("/")[0]


def read(record: str) -> ListingLine:
    """A line as it is written."""
    place = record[PLACE:]
    if "%" in place:
        place = os.fsdecode(unquote_to_bytes(place))
    return ListingLine(record[: KIND - 1], record[KIND], place)


def by_place(records: Iterable[str]) -> Dict[str, str]:
    """Lines by their place, as written there."""
    return {record[PLACE:]: record for record in records}


def patched(earlier: Iterable[str], new: Sequence[str], gone: Iterable[str]) -> List[str]:
    """The lines of a listing that is told by its difference to an earlier one.

    Args:
        earlier: the lines of that one.
        new: lines that it does not have.
        gone: places, as written, that are no more.
    """
    lines = by_place(earlier)
    for place in gone:
        lines.pop(place, None)
    lines.update(by_place(new))
    return sorted(lines.values(), key=_order)


def _order(record: str) -> "tuple[bool, str]":
    line = read(record)
    return line.kind == "d", line.place


EARLIER = 2
"""How many earlier snapshots home is told of; more would hold little that these don't."""
LARGEST = 512 * 1024 * 1024
"""The most that the listings of a few million files take."""
_CHUNK = 1024 * 1024


def begin(folder: str, digest: str, beside: str, roots: List[str], stale_minutes: float) -> bool:
    """Whether a snapshot is there already; if not, there is a folder now for it to grow in.

    Args:
        folder: of the project.
        digest: the snapshot.
        beside: the name of the folder to grow in.
        roots: folders to make in that one.
        stale_minutes: what a broken transfer left untouched for so long is removed.
    """
    if os.path.isdir(os.path.join(folder, digest)):
        with contextlib.suppress(FileNotFoundError):  # what is in use does not expire
            os.utime(_list(folder, digest))
        return True
    private_folder(folder)
    _remove_stale(folder, time.time() - stale_minutes * 60)
    for root in roots:
        private_folder(os.path.join(folder, beside, root))
    return False


def earlier(folder: str, digest: str) -> bytes:
    """The listings of the newest snapshots by their digests, as compressed JSON; nothing where this one is there."""
    if os.path.isdir(os.path.join(folder, digest)):
        return b""
    digests: Dict[str, str] = {}
    for name in _newest_first(folder):
        with contextlib.suppress(FileNotFoundError), open(_list(folder, name), encoding="ascii") as stream:
            digests[name] = stream.read()
        if len(digests) == EARLIER:
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
    """Put in what is still missing, check what travelled, and give the snapshot its name.

    Args:
        folder, digest, beside: as for `begin`.
        data: what `packed` made.

    Returns:
        The files that are not as the listing says: none, and the snapshot is there. None where the earlier snapshot
        that the listing builds on is gone.
    """
    patch, contents = _unpacked(data)
    with _alone(folder, beside):
        if os.path.isdir(os.path.join(folder, digest)):  # home asks again, or another launch was first
            _discard(folder, beside)
            return []
        try:
            records = _records(folder, digest, patch)
            if patch["inline"] is not None:
                _fill(folder, beside, records, patch, contents)
        except FileNotFoundError:
            return None
        target = os.path.join(folder, beside)
        wrong = _wrong(target, records, patch["check"])
        if not wrong:
            sync(target, _written(patch, records))
            _publish(folder, digest, beside, records)
        return wrong


def discard(folder: str, beside: str) -> None:
    """Remove what was begun."""
    if os.path.isdir(folder):
        _discard(folder, beside)


def packed(
    earlier: str,
    new: Sequence[str],
    gone: Sequence[str],
    check: Sequence[str],
    inline: Optional[Sequence[Tuple[bytes, int]]] = None,
) -> bytes:
    """What `finish` is told.

    Args:
        earlier: the digest of the snapshot that the listing builds on; "" for none.
        new: the lines of the listing that that one does not have.
        gone: its places, as written, that are no more.
        check: places, as written, of files whose content is to be checked.
        inline: the content of each file and link in `new`, with its time in nanoseconds; all else is the earlier
            snapshot's. None where the files are there already.
    """
    sizes = None if inline is None else [(len(content), mtime_ns) for content, mtime_ns in inline]
    patch = {"earlier": earlier, "new": list(new), "gone": list(gone), "check": list(check), "inline": sizes}
    return zlib.compress(b"\n".join([json.dumps(patch).encode(), b"".join(content for content, _ in inline or ())]))


def unzipped(data: bytes) -> bytes:
    """What zlib has compressed.

    Raises:
        ValueError: it is damaged, or of a size that no snapshot has.
    """
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, LARGEST)
    except zlib.error as error:
        raise ValueError("it is damaged: {}".format(error)) from error
    if not stream.eof:
        raise ValueError("it is cut short, or more than {} bytes".format(LARGEST))
    return content


def _unpacked(data: bytes) -> Tuple[Dict[str, Any], bytes]:
    patch, _, contents = unzipped(data).partition(b"\n")
    return json.loads(patch), contents


def _records(folder: str, digest: str, patch: Dict[str, Any]) -> List[str]:
    before: List[str] = []
    if patch["earlier"]:
        with open(_list(folder, patch["earlier"]), encoding="ascii") as stream:
            before = stream.read().splitlines()
    records = patched(before, patch["new"], patch["gone"])
    if hashlib.sha256(_text(records)).hexdigest() != digest:
        raise OperationError(
            "the listing is not the one that names the snapshot", _list(folder, digest), "launch again"
        )
    return records


def _fill(folder: str, beside: str, records: List[str], patch: Dict[str, Any], contents: bytes) -> None:
    base, target = os.path.join(folder, patch["earlier"]), os.path.join(folder, beside)
    new = set(patch["new"])
    lines = [read(record) for record in records if record[KIND] != "d"]
    for inner in {line.folder for line in lines}:
        os.makedirs(os.path.join(target, inner), 0o700, exist_ok=True)
    for line in (read(record) for record in records if record[KIND] != "d" and record not in new):
        _share(os.path.join(base, line.place), os.path.join(target, line.place), line.kind)
    start = 0
    sizes = iter(patch["inline"])
    for line in (read(record) for record in patch["new"] if record[KIND] != "d"):
        size, mtime_ns = next(sizes)
        _write(os.path.join(target, line.place), line.kind, contents[start : start + size], mtime_ns)
        start += size


def _share(source: str, target: str, kind: str) -> None:
    with contextlib.suppress(FileExistsError):  # home asks again
        if kind == "l":
            os.symlink(os.readlink(source), target)
            return
        try:
            os.link(source, target)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:  # a file system without hard links, or with as many as it can have
            shutil.copy2(source, target)


def _write(path: str, kind: str, content: bytes, mtime_ns: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # half of it, from a try that was cut
        os.unlink(path)
    if kind == "l":
        os.symlink(content, os.fsencode(path))
        return
    mode = 0o500 if kind == "x" else 0o400
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(content)
        os.utime(stream.fileno(), ns=(mtime_ns, mtime_ns))


def _written(patch: Dict[str, Any], records: List[str]) -> List[str]:
    """The files that have travelled; the others are an earlier snapshot's."""
    lines = by_place(records)
    new = patch["new"] if patch["inline"] is not None else [lines[place] for place in patch["check"]]
    return [line.place for line in map(read, new) if line.kind in "fx"]


def _wrong(target: str, records: List[str], check: List[str]) -> List[str]:
    lines = by_place(records)
    return [place for place in check if not _is(target, read(lines[place]))]


def _is(target: str, line: ListingLine) -> bool:
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
    write_whole(_list(folder, digest), _text(records))
    try:
        os.rename(target, os.path.join(folder, digest))
    except OSError:
        if not os.path.isdir(os.path.join(folder, digest)):
            raise
        _discard(folder, beside)  # another launch was first


def _text(records: List[str]) -> bytes:
    return ("\n".join(records) + "\n").encode("ascii")


def _list(folder: str, digest: str) -> str:
    return os.path.join(folder, digest + ".list")


def _discard(folder: str, beside: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        tree.remove(folder, beside)


@contextlib.contextmanager
def _alone(folder: str, beside: str) -> Iterator[None]:
    """Home asks again when a connection is lost: what it asked first may still be under way."""
    try:
        descriptor = os.open(os.path.join(folder, beside), os.O_RDONLY)
    except FileNotFoundError:  # it has its name already
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(folder: str, before: float) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith(".") and os.path.isdir(path) and not os.path.islink(path) and _touched(path) < before:
            with contextlib.suppress(OSError, tree.NotOurs):  # another launch removes it, too
                tree.remove(folder, name)


def _touched(path: str) -> float:
    """When anything in a folder changed last."""
    inside = (os.path.join(each, name) for each, folders, files in os.walk(path) for name in (".", *files))
    latest = 0.0
    for one in inside:
        with contextlib.suppress(FileNotFoundError):
            latest = max(latest, os.lstat(one).st_ctime)
    return latest


OPERATIONS: Dict[str, Any] = {
    "snapshots.begin": begin,
    "snapshots.earlier": earlier,
    "snapshots.finish": finish,
    "snapshots.discard": discard,
}
