"""Files on a cluster: read in pieces, written whole or not at all, private to their user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple

from slurm_ray_flow.remote.shared.protocol import TAKEN, OperationError

PIECE = 1024 * 1024
"""The most that one reading of a log or of events takes into memory."""
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What a file system without locks says, such as Lustre without `flock`."""
FEW = 16
"""So many files are brought to the disk one by one."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
"""Seconds between two looks at a file that is waited for; the pause grows while nothing happens."""


def private_folder(path: str) -> str:
    """Make a folder that only its user can enter, and give it back.

    Raises:
        OperationError: it can't be made, or somebody else made it, the link that leads to it, or one on the way there.
    """
    path = os.path.abspath(path)  # of a name that ends in "/", only what it leads to would be looked at
    try:
        _make(path)
        _refuse_foreign(path, {os.stat(path).st_uid, os.lstat(path).st_uid})
        _refuse_planted(path)
    except OSError as error:
        raise OperationError("a folder can't be made: {}".format(error.strerror), path, _ADVICE) from error
    return path


_ADVICE = "see that the folder above can be written, or choose another one: $SRF_HOME, a cluster's root"


def _make(path: str) -> None:
    if path and not os.path.isdir(path):
        _make(os.path.dirname(path))  # mkdir's own parents would get the umask's mode
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _refuse_foreign(path: str, owners: Set[int]) -> None:
    foreign = owners - {os.geteuid(), 0}
    if foreign:
        raise OperationError("a folder belongs to another user (number {})".format(min(foreign)), path, _ADVICE)


def _refuse_planted(path: str) -> None:
    """Where others can write in a folder of this user, what they have put there is no way to `path`."""
    above = os.path.dirname(path)
    if above == path:
        return
    _refuse_planted(above)
    status, around = os.lstat(path), os.stat(above)
    if around.st_uid == os.geteuid() and around.st_mode & 0o022:
        _refuse_foreign(path, {status.st_uid})
    if stat.S_ISLNK(status.st_mode):
        _refuse_planted(os.path.normpath(os.path.join(above, os.readlink(path))))


def write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one, also after a loss of power."""
    private_folder(os.path.dirname(path))
    descriptor, beside = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def sync(folder: str, files: Sequence[str]) -> None:
    """Have files on the disk before something vouches for them: a few one by one, many with all of their file system.

    Args:
        folder: one on that file system.
        files: their paths, relative to the folder.
    """
    if len(files) > FEW:
        sync_all(folder)
        return
    for name in files:
        _sync(os.path.join(folder, name), os.fsync)


def sync_all(folder: str) -> None:
    """Have all that was written to a folder's file system on the disk."""
    import ctypes

    _sync(folder, getattr(ctypes.CDLL(None), "syncfs", lambda _: os.sync()))  # macOS has no syncfs


def _sync(path: str, call: Callable[[int], Any]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        call(descriptor)
    finally:
        os.close(descriptor)


def lock_if_possible(descriptor: int, operation: int) -> None:
    """`fcntl.flock`; where the file system has no locks, it goes on without.

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
    """At most a piece of a file from `offset` on; nothing where there is no file."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.read(PIECE)
    except FileNotFoundError:
        return b""


def await_growth(files: List[Tuple[str, int]], within: float) -> None:
    """Wait until one of these files is longer than stated, at most so many seconds."""
    deadline, pause = time.monotonic() + within, SHORTEST_PAUSE
    while not any(_size(path) > offset for path, offset in files):
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pause, left))
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
    """What lies in a folder, sorted; nothing where there is none."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def announce(path: str) -> bool:
    """Make an empty file; False where its folder is gone. A call that its head has taken already stays taken."""
    if os.path.exists(path + TAKEN):
        return True
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except FileNotFoundError:
        return False
    return True


def remove(path: str) -> bool:
    """Remove a file; says whether there was one."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def rename(path: str, target: str) -> None:
    """Give a file its name, once its content is on the disk; done twice is done once."""
    try:
        sync(os.path.dirname(path), [path])
        os.replace(path, target)
    except FileNotFoundError:
        if not os.path.exists(target):
            raise


def folders(root: str, names: List[str]) -> None:
    """Make the folders in a root, which others may be able to write: each its user's own, and closed to them."""
    for name in names:
        folder = private_folder(os.path.join(root, name))
        found = os.stat(folder)
        if name and found.st_uid == os.geteuid() and found.st_mode & 0o022:
            os.chmod(folder, 0o700)


_ALL = (await_growth, read, write, names, announce, remove, rename, folders, sync_all)
OPERATIONS: Dict[str, Any] = {"files." + operation.__name__: operation for operation in _ALL}
