"""Files on a cluster: reads are limited in size, writes are atomic, and files are private to their user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, Sequence, Set, Tuple

from slurm_ray_flow.remote.shared.protocol import TAKEN, OperationError

PIECE = 1024 * 1024
"""Bytes that one read of a log or of events returns at most."""
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""Errors of a file system without locks, such as Lustre mounted without `flock`."""
FSYNC_LIMIT = 16
"""So many files are synced one by one; for more, their whole file system is."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
"""Seconds between two checks of a file that is waited for; the pause grows while nothing changes."""


def private_folder(path: str) -> str:
    """Make a folder that only its user can enter; returns its absolute path.

    Raises:
        OperationError: it can't be made, or the folder or a link on its path belongs to another user.
    """
    path = os.path.abspath(path)  # without a final "/", with which lstat would follow a link
    try:
        _make_folders(path)
        _refuse_foreign(path, {os.stat(path).st_uid, os.lstat(path).st_uid})
        _refuse_foreign_entries(path)
    except OSError as error:
        raise OperationError("a folder can't be made: {}".format(error.strerror), path, _ADVICE) from error
    return path


_ADVICE = "see that the folder above can be written, or choose another one: $SRF_HOME, a cluster's root"


def _make_folders(path: str) -> None:
    if path and not os.path.isdir(path):
        _make_folders(os.path.dirname(path))  # os.makedirs gives parents the umask's mode
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _refuse_foreign(path: str, owners: Set[int]) -> None:
    foreign = owners - {os.geteuid(), 0}
    if foreign:
        raise OperationError("a folder belongs to another user (number {})".format(min(foreign)), path, _ADVICE)


def _refuse_foreign_entries(path: str) -> None:
    """Refuse a path that leads through another user's entry in a folder of this user that others can write to."""
    parent = os.path.dirname(path)
    if parent == path:
        return
    _refuse_foreign_entries(parent)
    status, parent_status = os.lstat(path), os.stat(parent)
    if parent_status.st_uid == os.geteuid() and parent_status.st_mode & 0o022:
        _refuse_foreign(path, {status.st_uid})
    if stat.S_ISLNK(status.st_mode):
        _refuse_foreign_entries(os.path.normpath(os.path.join(parent, os.readlink(path))))


def write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a temporary file and rename it: readers see the old or the new content, also after a loss of power."""
    private_folder(os.path.dirname(path))
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync(folder: str, files: Sequence[str]) -> None:
    """Sync files to the disk: a few one by one, many with their whole file system.

    Args:
        folder: a folder on their file system.
        files: their paths, relative to the folder.
    """
    if len(files) > FSYNC_LIMIT:
        sync_all(folder)
        return
    for name in files:
        _sync(os.path.join(folder, name), os.fsync)


def sync_all(folder: str) -> None:
    """Sync the file system of a folder to the disk."""
    import ctypes

    _sync(folder, getattr(ctypes.CDLL(None), "syncfs", lambda _: os.sync()))  # macOS has no syncfs


def _sync(path: str, call: Callable[[int], Any]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call(descriptor)
    finally:
        os.close(descriptor)


def lock_if_possible(descriptor: int, operation: int) -> None:
    """`fcntl.flock`; on a file system without locks it does nothing.

    Raises:
        BlockingIOError: another process has the lock, and `operation` does not wait for it.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


# ---- operations


def read(path: str, offset: int = 0) -> bytes:
    """At most `PIECE` bytes of a file from `offset` on; none if there is no file."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.read(PIECE)
    except FileNotFoundError:
        return b""


def await_growth(files: List[Tuple[str, int]], within: float) -> None:
    """Wait until one of these files is longer than its offset, for at most `within` seconds."""
    for _ in polls(within):
        if any(_size(path) > offset for path, offset in files):
            return


def polls(within: float) -> Iterator[None]:
    """The turns of a loop that looks for something: at once, after pauses that grow, and at the end of the time.

    Args:
        within: seconds that the loop may take.
    """
    deadline, pause = time.monotonic() + within, SHORTEST_PAUSE
    while True:
        yield
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return
        time.sleep(min(pause, remaining))
        pause = min(pause * 1.3, LONGEST_PAUSE)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def write(path: str, data: bytes) -> None:
    """Write a small private file."""
    write_whole(path, data)


def names(path: str) -> List[str]:
    """The sorted names in a folder; none if there is no folder."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def announce(path: str) -> bool:
    """Announce a call by an empty file in an inbox, unless the head runs it already. False if the inbox is gone."""
    if os.path.exists(path + TAKEN):
        return True
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except FileNotFoundError:
        return False
    return True


def remove(path: str) -> bool:
    """Remove a file; returns whether there was one."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def rename(path: str, target: str) -> None:
    """Sync a file to the disk and rename it; a repetition after a success does nothing."""
    try:
        sync(os.path.dirname(path), [path])
        os.replace(path, target)
    except FileNotFoundError:
        if not os.path.exists(target):
            raise


def link(path: str, target: str, size: int) -> bool:
    """Give a file of this size a second name, by a hard link or else a copy. False where there is no such file."""
    private_folder(os.path.dirname(target))
    try:
        if _size(path) != size:
            return False
        with contextlib.suppress(FileExistsError):  # home repeats a request
            os.link(path, target)
    except FileNotFoundError:
        return False
    except OSError:  # another file system, or one without links
        temporary = target + ".part"
        shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    return True


def folders(root: str, names: List[str]) -> None:
    """Make folders in a root that other users may be able to write to: each is this user's and closed to others."""
    for name in names:
        folder = private_folder(os.path.join(root, name))
        status = os.stat(folder)
        if name and status.st_uid == os.geteuid() and status.st_mode & 0o022:
            os.chmod(folder, 0o700)


_ALL = (await_growth, read, write, names, announce, remove, rename, link, folders, sync_all)
OPERATIONS: Dict[str, Any] = {"files." + operation.__name__: operation for operation in _ALL}
