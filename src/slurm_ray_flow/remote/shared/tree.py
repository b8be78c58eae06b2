"""Reading and removing files by descriptors, so that no link that another user planted leads out of a folder.

Every folder of a path is opened without following links, and must belong to this user. Files of another user or on
another file system are left alone, with the folders around them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import Dict, Iterator, List, Tuple

EXPIRED = ".expired"
"""The suffix of files that are being removed."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_LIMIT = 4 * 1024 * 1024


class NotOurs(Exception):
    """A file or folder is a link, another user's, or on another file system, and is left alone."""


@contextlib.contextmanager
def folder(base: str, path: str = "") -> Iterator[int]:
    """Open a folder below a base.

    Args:
        base: a folder; links in its own path are followed.
        path: the folder's path below the base, whose every part must be a folder of this user; "" is the base.

    Raises:
        FileNotFoundError: there is no such folder.
        NotOurs: a part is a link, no folder, or another user's.
    """
    descriptor = os.open(os.path.realpath(base), _FOLDER)
    try:
        for part in [part for part in path.split("/") if part]:
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


def _check(status: os.stat_result, name: str) -> None:
    if status.st_uid != os.geteuid():
        raise NotOurs("{} belongs to another user (number {})".format(name, status.st_uid))


def entries(base: str, path: str) -> Dict[str, os.stat_result]:
    """The status of each entry of a folder, links not followed; empty if there is no folder."""
    try:
        with folder(base, path) as descriptor, os.scandir(descriptor) as scan:
            return {entry.name: status for entry in scan for status in _status(entry)}
    except FileNotFoundError:
        return {}


def _status(entry: os.DirEntry[str]) -> List[os.stat_result]:
    with contextlib.suppress(FileNotFoundError):  # removed a moment ago
        return [entry.stat(follow_symlinks=False)]
    return []


def is_folder(status: os.stat_result) -> bool:
    """Whether this is a folder, and not a link to one."""
    return stat.S_ISDIR(status.st_mode)


def is_file(status: os.stat_result) -> bool:
    """Whether this is a regular file: no link, pipe or device."""
    return stat.S_ISREG(status.st_mode)


def read(base: str, path: str, name: str) -> bytes:
    """The first 4 MiB of a regular file of this user; empty if there is none."""
    try:
        with folder(base, path) as parent, open(os.open(name, _FILE, dir_fd=parent), "rb") as stream:
            status = os.fstat(stream.fileno())
            is_own_file = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            return stream.read(_READ_LIMIT) if is_own_file else b""
    except (OSError, NotOurs):
        return b""


def measure(base: str, path: str) -> Tuple[int, int]:
    """The bytes and the number of files at a path; the bytes of a file with hard links are divided among them.

    Raises:
        NotOurs: a part of it must be left alone.
    """
    parent, _, name = path.rpartition("/")
    with folder(base, parent) as descriptor:
        return _measure(descriptor, name, os.fstat(descriptor).st_dev)


def _measure(parent: int, name: str, device: int) -> Tuple[int, int]:
    status = _own_status(parent, name, device)
    if not is_folder(status):
        return status.st_blocks * 512 // max(1, status.st_nlink), 1
    size, count = status.st_blocks * 512, 1
    descriptor = _enter(parent, name)
    try:
        for child in os.listdir(descriptor):
            child_size, child_count = _measure(descriptor, child, device)
            size, count = size + child_size, count + child_count
    finally:
        os.close(descriptor)
    return size, count


def _own_status(parent: int, name: str, device: int) -> os.stat_result:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    _check(status, name)
    if status.st_dev != device:
        raise NotOurs("{} lies on another file system".format(name))
    return status


def set_aside(base: str, path: str) -> str:
    """Rename a file or folder to a hidden name, so that no process finds it; returns its new path.

    Raises:
        FileNotFoundError: another process has removed it.
    """
    parent, _, name = path.rpartition("/")
    if name.startswith(".") and name.endswith(EXPIRED):
        return path
    aside = ".{}.{}{}".format(name, secrets.token_hex(4), EXPIRED)
    with folder(base, parent) as descriptor:
        os.rename(name, aside, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    return "/".join(filter(None, (parent, aside)))


def put_back(base: str, aside: str, path: str) -> None:
    """Undo `set_aside`."""
    parent, _, name = path.rpartition("/")
    with folder(base, parent) as descriptor, contextlib.suppress(OSError):
        os.rename(aside.rpartition("/")[2], name, src_dir_fd=descriptor, dst_dir_fd=descriptor)


def remove(base: str, path: str) -> None:
    """Remove a file, or a folder with its content; what another process removes meanwhile is no error.

    Raises:
        NotOurs: a part of it must be left alone, with the folders around it.
        OSError: a part of it can't be removed.
    """
    parent, _, name = path.rpartition("/")
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
        for child in os.listdir(descriptor):
            _remove(descriptor, child, device)
    finally:
        os.close(descriptor)
