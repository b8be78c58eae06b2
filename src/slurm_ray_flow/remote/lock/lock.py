"""Locks on files that several users share, taken with `fcntl.lockf` as SlurmRay's wrapper takes them.

Such a lock belongs to a process: children don't inherit it, and closing any descriptor of the file in the process
releases it. The next run may begin only after three processes of a run have ended (docs/decisions/0006), so each of
them holds a part of the file: a process that locks the whole file waits for all three.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
import struct
from typing import Callable, List, NamedTuple, Optional, Set, Tuple

from slurm_ray_flow.remote.shared.protocol import OperationError

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
KEEPER, WATCHDOG, INNER = (0, 1), (1, 1), (2, 0)
"""The part of each file that each process of a run holds: its offset and length (0: to the end)."""
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FLOCK = "hhqqi4x"
_TRIES = 20
LOCK_FOLDER = "/run/lock"


class HeldLock(NamedTuple):
    """A lock file that is held: descriptor, mode and path; `reopen` opens the path again after a removal."""

    descriptor: int
    mode: int
    path: str
    reopen: Callable[[], int]


class LockFiles:
    """The lock files that a run holds. After `divide`, each of its processes holds a part of each."""

    def __init__(self) -> None:
        self._held: List[HeldLock] = []

    def take(self, descriptor: int, mode: int, path: str, reopen: Callable[[], int]) -> bool:
        """Lock a file if it is free; then its descriptor belongs to this object. Returns whether it was free."""
        if not _lock(descriptor, mode, (0, 0)):
            return False
        self._held.append(HeldLock(descriptor, mode, path, reopen))
        return True

    def keep(self, part: Tuple[int, int]) -> List[str]:
        """Touch the files, so that no clean-up of old files removes them, and lock removed ones again.

        Returns:
            The paths of removed files that another process has locked meanwhile.
        """
        lost_paths = []
        for held in list(self._held):
            with contextlib.suppress(OSError):
                os.utime(held.descriptor)
            if is_current(held.descriptor, held.path):
                continue
            with contextlib.suppress(OperationError):
                descriptor = held.reopen()
                if _lock(descriptor, held.mode, part):
                    self._held[self._held.index(held)] = held._replace(descriptor=descriptor)
                    continue
                os.close(descriptor)
            lost_paths.append(held.path)
        return lost_paths

    def divide(self) -> None:
        """Unlock the parts of this run's other processes."""
        for held in self._held:
            fcntl.lockf(held.descriptor, fcntl.LOCK_UN, 0, sum(KEEPER))

    def join(self, part: Tuple[int, int]) -> None:
        """In a child: lock this part of each file.

        Raises:
            OperationError: another run has it, which is impossible while the keeper holds its own part.
        """
        for held in self._held:
            if not _lock(held.descriptor, held.mode, part):
                raise OperationError("the lock was lost", cause="lock")

    def drop(self) -> None:
        """Close all files, which releases their locks."""
        for held in self._held:
            os.close(held.descriptor)
        self._held.clear()

    def identities(self) -> Set[Tuple[int, int]]:
        """Device and inode of each file."""
        return {identity(os.fstat(held.descriptor)) for held in self._held}


def _lock(descriptor: int, mode: int, part: Tuple[int, int]) -> bool:
    try:
        fcntl.lockf(descriptor, mode | fcntl.LOCK_NB, part[1], part[0])
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def identity(status: os.stat_result) -> Tuple[int, int]:
    """Device and inode of a file."""
    return status.st_dev, status.st_ino


def file_paths(path: str) -> List[str]:
    """The files to lock for a lock at this path, in this order.

    A clean-up of old files in /tmp may remove a lock that is held, but not one in the system's folder for locks. A file
    there is locked first, if all users can write to that folder.
    """
    with contextlib.suppress(OSError):
        first = os.path.join(LOCK_FOLDER, os.path.basename(path))
        shared = stat.S_IMODE(os.stat(LOCK_FOLDER).st_mode) == 0o1777
        usable = not os.path.lexists(first) or os.access(first, os.W_OK)
        if os.path.dirname(path) == "/tmp" and shared and usable:
            return [first, path]
    return [path]


def holder_pid(descriptor: int) -> Optional[int]:
    """The pid of the process that holds a lock on the file, 0 for an invisible process; None if there is none.

    Nothing is locked. Locks of this process itself don't count.
    """
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, request))
    return None if answer[0] == fcntl.F_UNLCK else max(0, answer[4])


def open_shared(path: str, folder: Optional[int] = None) -> int:
    """Open a lock file, or make one that all users may lock. Nothing is ever written to it.

    Args:
        path: the file.
        folder: a descriptor of the folder that `path` is relative to.

    Raises:
        OperationError: the path is a link, no regular file, or a file that this user can't open.
    """
    for _ in range(_TRIES):
        try:
            # Without O_CREAT first: with it, sticky folders refuse files of other users (fs.protected_regular).
            return _checked_file(os.open(path, os.O_RDWR | _FLAGS, dir_fd=folder), path)
        except FileNotFoundError:
            created = _create(path, folder)
            if created is not None:
                return created
        except OSError as error:
            raise _open_error(path, error, folder) from error
    raise OperationError("the lock's file comes and goes", path, "see who removes it", "lock")


def open_to_look(path: str) -> Optional[int]:
    """Open a lock file to find its holder; None if there is no file.

    Raises:
        OperationError: the path is a link, or no regular file.
    """
    try:
        return _checked_file(os.open(path, os.O_RDONLY | _FLAGS), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _open_error(path, error, None) from error


def open_part(name: str, folder: int, own: Set[Tuple[int, int]]) -> int:
    """Open the lock file of a slot or a GPU. It must not be a hard link: closing it would release another lock.

    Raises:
        OperationError: it is such a link, or can't be opened.
    """
    status = _status(name, folder)
    if status is not None and (status.st_nlink != 1 or identity(status) in own):
        raise OperationError("the lock's file is another file, too", name, _REMOVE_ADVICE, "lock")
    return open_shared(name, folder)


def _status(name: str, folder: int) -> Optional[os.stat_result]:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _create(path: str, folder: Optional[int]) -> Optional[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666, dir_fd=folder)
    except FileExistsError:
        return None
    except OSError as error:
        raise OperationError(
            "the lock's file can't be made: {}".format(error.strerror), path, "see that its folder is there", "lock"
        ) from error
    os.fchmod(descriptor, 0o666)  # for all users, whatever the umask is
    return descriptor


def _checked_file(descriptor: int, path: str) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OperationError("what lies where the lock should be is no file", path, _REMOVE_ADVICE, "lock")
    return descriptor


_REMOVE_ADVICE = "have whoever put it there remove it, or set another lock_path"


def _open_error(path: str, error: OSError, folder: Optional[int]) -> OperationError:
    if error.errno == errno.ELOOP:
        return OperationError("the lock's file is a link, which is not followed", path, _REMOVE_ADVICE, "lock")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        owner = _owner(path, folder)
        advice = "have {0} run `chmod 666` on it, or remove it while nobody holds it".format(owner)
        return OperationError(
            "the lock's file belongs to {}, and you can't write it".format(owner), path, advice, "lock"
        )
    return OperationError("the lock's file can't be opened: {}".format(error.strerror), path, _REMOVE_ADVICE, "lock")


def _owner(path: str, folder: Optional[int]) -> str:
    try:
        return user_name(os.stat(path, dir_fd=folder, follow_symlinks=False).st_uid)
    except OSError:
        return "somebody else"


def user_name(number: int) -> str:
    """The name of a user, or the number if it has no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return "user {}".format(number)


def is_current(descriptor: int, path: str) -> bool:
    """Whether the path still leads to the open file; a lock on a removed file excludes nobody."""
    try:
        return identity(os.stat(path, follow_symlinks=False)) == identity(os.fstat(descriptor))
    except FileNotFoundError:
        return False
