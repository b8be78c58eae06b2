"""Files that are looked at and removed by descriptors, so that no link that somebody planted leads out of a folder.

Every folder on the way is opened without following links, and must belong to this user. What belongs to another user,
or lies on another file system, is left where it is together with all that is around it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import Dict, Iterator, List, Tuple

EXPIRED = ".expired"
"""Ends the name of what is being removed."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST = 4 * 1024 * 1024


class NotOurs(Exception):
    """Something is a link, belongs to another user, or lies on another file system: it is left alone."""


@contextlib.contextmanager
def folder(base: str, place: str = "") -> Iterator[int]:
    """Open a folder below a base.

    Args:
        base: a folder; links in its own path are followed.
        place: the folder's path from there, whose every part must be a folder of this user; "" is the base itself.

    Raises:
        FileNotFoundError: there is none.
        NotOurs: a part is a link, no folder, or another user's.
    """
    descriptor = os.open(os.path.realpath(base), _FOLDER)
    try:
        for part in [part for part in place.split("/") if part]:
            inner = _enter(descriptor, part)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(parent: int, name: str) -> int:
    if name in (".", ".."):
        raise NotOurs("{} is no name".format(name))
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotOurs("{} is a link, or can't be opened: {}".format(name, error.strerror)) from error
    try:
        _check(os.fstat(descriptor), name)
    except NotOurs:
        os.close(descriptor)
        raise
    return descriptor


def _check(found: os.stat_result, name: str) -> None:
    if found.st_uid != os.geteuid():
        raise NotOurs("{} belongs to another user (number {})".format(name, found.st_uid))


def entries(base: str, place: str) -> Dict[str, os.stat_result]:
    """What lies in a folder, links not followed; nothing where there is none."""
    try:
        with folder(base, place) as descriptor, os.scandir(descriptor) as found:
            return {entry.name: status for entry in found for status in _status(entry)}
    except FileNotFoundError:
        return {}


def _status(entry: os.DirEntry[str]) -> List[os.stat_result]:
    with contextlib.suppress(FileNotFoundError):  # removed a moment ago
        return [entry.stat(follow_symlinks=False)]
    return []


def is_folder(status: os.stat_result) -> bool:
    """Whether it is a folder, and not a link to one."""
    return stat.S_ISDIR(status.st_mode)


def is_file(status: os.stat_result) -> bool:
    """Whether it is a plain file: no link, pipe or device."""
    return stat.S_ISREG(status.st_mode)


def read(base: str, place: str, name: str) -> bytes:
    """The first MiBs of a plain file of this user; nothing where there is none."""
    try:
        with folder(base, place) as parent, open(os.open(name, _FILE, dir_fd=parent), "rb") as stream:
            found = os.fstat(stream.fileno())
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            return stream.read(_LONGEST) if ours else b""
    except (OSError, NotOurs):
        return b""


def measure(base: str, place: str) -> Tuple[int, int]:
    """Bytes and number of what lies at a path; of a file with several names, each counts its share.

    Raises:
        NotOurs: something in it must be left alone, and so the whole.
    """
    parent, _, name = place.rpartition("/")
    with folder(base, parent) as descriptor:
        return _measure(descriptor, name, os.fstat(descriptor).st_dev)


def _measure(parent: int, name: str, device: int) -> Tuple[int, int]:
    status = _own_status(parent, name, device)
    if not is_folder(status):
        return status.st_blocks * 512 // max(1, status.st_nlink), 1
    size, number = status.st_blocks * 512, 1
    descriptor = _enter(parent, name)
    try:
        for inner in os.listdir(descriptor):
            more_size, more = _measure(descriptor, inner, device)
            size, number = size + more_size, number + more
    finally:
        os.close(descriptor)
    return size, number


def _own_status(parent: int, name: str, device: int) -> os.stat_result:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    _check(status, name)
    if status.st_dev != device:
        raise NotOurs("{} lies on another file system".format(name))
    return status


def set_aside(base: str, place: str) -> str:
    """Rename a thing out of everybody's sight; gives its new place.

    Raises:
        FileNotFoundError: somebody else has removed it.
    """
    parent, _, name = place.rpartition("/")
    if name.startswith(".") and name.endswith(EXPIRED):
        return place
    away = ".{}.{}{}".format(name, secrets.token_hex(4), EXPIRED)
    with folder(base, parent) as descriptor:
        os.rename(name, away, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    return "/".join(filter(None, (parent, away)))


def put_back(base: str, away: str, place: str) -> None:
    """Undo `set_aside`."""
    parent, _, name = place.rpartition("/")
    with folder(base, parent) as descriptor, contextlib.suppress(OSError):
        os.rename(away.rpartition("/")[2], name, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def remove(base: str, place: str) -> None:
    """Remove a file or a folder with all that is in it; what vanishes meanwhile is no error.

    Raises:
        NotOurs: something in it is another user's; that stays, and the folders around it.
        OSError: something can't be removed.
    """
    parent, _, name = place.rpartition("/")
    with folder(base, parent) as descriptor:
        _remove(descriptor, name, os.fstat(descriptor).st_dev)


def _remove(parent: int, name: str, device: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not is_folder(_own_status(parent, name, device)):
            os.unlink(name, dir_fd=parent)
            return
        _empty(parent, name, device)
        os.rmdir(name, dir_fd=parent)


def _empty(parent: int, name: str, device: int) -> None:
    descriptor = _enter(parent, name)
    try:
        os.fchmod(descriptor, 0o700)  # a snapshot's folders can't be written
        for inner in os.listdir(descriptor):
            _remove(descriptor, inner, device)
    finally:
        os.close(descriptor)
