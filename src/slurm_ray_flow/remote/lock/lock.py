"""Locks on files that several users share, taken with `fcntl.lockf` as SlurmRay's wrapper takes them.

Such a lock belongs to a process: children don't inherit it, and closing any descriptor of the file in the process
drops it. A run has three processes that must all be gone before the next run may begin (docs/decisions/0006), so each
of them holds a part of the file: whoever wants the whole file waits for the last of them.
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
KEEPER, WARDEN, INNER = (0, 1), (1, 1), (2, 0)
"""The part of each file that each process of a run holds: where it starts, how long it is (0: to the end)."""
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FLOCK = "hhqqi4x"
_TRIES = 20
LOCKS = "/run/lock"


class HeldLock(NamedTuple):
    """A lock file that is held: its open file, its `path`, and the file opened `again` there after a removal."""

    descriptor: int
    mode: int
    path: str
    again: Callable[[], int]


class LockFiles:
    """The lock files that a run holds. After `divide`, each of its processes holds a part of each."""

    def __init__(self) -> None:
        self._held: List[HeldLock] = []

    def take(self, descriptor: int, mode: int, path: str, again: Callable[[], int]) -> bool:
        """Lock a file if that is possible at once. From then on its descriptor belongs to this object."""
        if not _lock(descriptor, mode, (0, 0)):
            return False
        self._held.append(HeldLock(descriptor, mode, path, again))
        return True

    def keep(self, part: Tuple[int, int]) -> List[str]:
        """Touch the files, so that no clean-up of old files removes them, and lock removed ones again.

        Returns:
            The paths of those that somebody else has by now.
        """
        lost = []
        for held in list(self._held):
            with contextlib.suppress(OSError):
                os.utime(held.descriptor)
            if is_current(held.descriptor, held.path):
                continue
            with contextlib.suppress(OperationError):
                descriptor = held.again()
                if _lock(descriptor, held.mode, part):
                    self._held[self._held.index(held)] = held._replace(descriptor=descriptor)
                    continue
                os.close(descriptor)
            lost.append(held.path)
        return lost

    def divide(self) -> None:
        """Unlock the parts of this run's other processes."""
        for held in self._held:
            fcntl.lockf(held.descriptor, fcntl.LOCK_UN, 0, sum(KEEPER))

    def join(self, part: Tuple[int, int]) -> None:
        """In a child: hold this part, too.

        Raises:
            OperationError: somebody else has it; that can't be while the keeper holds its own.
        """
        for held in self._held:
            if not _lock(held.descriptor, held.mode, part):
                raise OperationError("the lock was lost", cause="lock")

    def drop(self) -> None:
        """Give up all files."""
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


def names(path: str) -> List[str]:
    """The files that are locked for a lock at this path, in this order.

    What removes old files from /tmp may remove a lock that is held. One in the folder that is made for locks is safe
    from that, so it is taken first, where all users have such a folder.
    """
    with contextlib.suppress(OSError):
        first = os.path.join(LOCKS, os.path.basename(path))
        for_all = stat.S_IMODE(os.stat(LOCKS).st_mode) == 0o1777
        if os.path.dirname(path) == "/tmp" and for_all and (not os.path.lexists(first) or os.access(first, os.W_OK)):
            return [first, path]
    return [path]


def holder(descriptor: int) -> Optional[int]:
    """The process that keeps others from the file: its pid, 0 if it can't be seen from here; None if there is none.

    Only asks: nothing is locked. Locks of this process itself don't count.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if answer[0] == fcntl.F_UNLCK else max(0, answer[4])


def open_shared(path: str, folder: Optional[int] = None) -> int:
    """Open a lock file that everybody may lock; make it where there is none. Nothing is ever written to it.

    Args:
        path: the file.
        folder: a descriptor of the folder that `path` is relative to.

    Raises:
        OperationError: it can't be a lock: a link, no file, or not for us to lock.
    """
    for _ in range(_TRIES):
        try:
            # Without O_CREAT first: with it, sticky folders refuse files of others (fs.protected_regular).
            return _checked(os.open(path, os.O_RDWR | _FLAGS, dir_fd=folder), path)
        except FileNotFoundError:
            made = _made(path, folder)
            if made is not None:
                return made
        except OSError as error:
            raise _refused(path, error, folder) from error
    raise OperationError("the lock's file comes and goes", path, "see who removes it", "lock")


def open_to_look(path: str) -> Optional[int]:
    """Open a lock file only to ask who holds it; None where there is no file.

    Raises:
        OperationError: what lies there is no lock.
    """
    try:
        return _checked(os.open(path, os.O_RDONLY | _FLAGS), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(path, error, None) from error


def open_part(name: str, folder: int, own: Set[Tuple[int, int]]) -> int:
    """Open the lock file of a slot or a card. It must be a file of its own: to close it must drop no other lock.

    Raises:
        OperationError: it can't be a lock.
    """
    known = _status(name, folder)
    if known is not None and (known.st_nlink != 1 or identity(known) in own):
        raise OperationError("the lock's file is another file, too", name, _REMOVE, "lock")
    return open_shared(name, folder)


def _status(name: str, folder: int) -> Optional[os.stat_result]:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _made(path: str, folder: Optional[int]) -> Optional[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666, dir_fd=folder)
    except FileExistsError:
        return None
    except OSError as error:
        raise OperationError(
            "the lock's file can't be made: {}".format(error.strerror), path, "see that its folder is there", "lock"
        ) from error
    os.fchmod(descriptor, 0o666)  # whatever the umask is: it is for everybody
    return descriptor


def _checked(descriptor: int, path: str) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OperationError("what lies where the lock should be is no file", path, _REMOVE, "lock")
    return descriptor


_REMOVE = "have whoever put it there remove it, or set another lock_path"


def _refused(path: str, error: OSError, folder: Optional[int]) -> OperationError:
    if error.errno == errno.ELOOP:
        return OperationError("the lock's file is a link, which is not followed", path, _REMOVE, "lock")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        owner = _owner(path, folder)
        advice = "have {0} run `chmod 666` on it, or remove it while nobody holds it".format(owner)
        return OperationError(
            "the lock's file belongs to {}, and you can't write it".format(owner), path, advice, "lock"
        )
    return OperationError("the lock's file can't be opened: {}".format(error.strerror), path, _REMOVE, "lock")


def _owner(path: str, folder: Optional[int]) -> str:
    try:
        return user_name(os.stat(path, dir_fd=folder, follow_symlinks=False).st_uid)
    except OSError:
        return "somebody else"


def user_name(number: int) -> str:
    """The name of a user, or the number where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return "user {}".format(number)


def is_current(descriptor: int, path: str) -> bool:
    """Whether the path still names the file that is open; a lock on any other excludes nobody."""
    try:
        return identity(os.stat(path, follow_symlinks=False)) == identity(os.fstat(descriptor))
    except FileNotFoundError:
        return False
