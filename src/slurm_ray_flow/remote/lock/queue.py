"""The queue of a lock: a folder with a ticket for each run, and the operation that describes holders and queue."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from slurm_ray_flow.remote.lock import lock
from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.protocol import OperationError, parse_json

WAITS, HOLDS, IDLES = "w-", "h-", "i-"
FIELDS = ("run", "name", "server")
LONGEST_TEXT, LARGEST_TICKET = 200, 4096
DEAD_AFTER = 10.0
"""Seconds after which a ticket that nobody holds is removed; a new one is not held yet for a moment."""
_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Ticket(NamedTuple):
    """One run in the queue, as others see it."""

    entry: str
    pid: int
    uid: int
    order: int
    text: Dict[str, str]
    idle: bool = False

    @property
    def holds(self) -> bool:
        return self.entry.startswith(HOLDS)

    def describe(self) -> Dict[str, Any]:
        """The ticket's fields for people and programs."""
        who = {"user": lock.user_name(self.uid), "since": self.order / 1e9, "pid": self.pid, "foreign": False}
        who["idle"] = self.idle
        return {**{name: self.text.get(name, "") for name in FIELDS}, **who}


class QueueFolder:
    """The folder of a lock's queue.

    Args:
        path: the lock's file.
        make: make the folder where there is none.

    Raises:
        OperationError: what lies there can't be a queue.
        FileNotFoundError: there is none, and none is to be made.
    """

    def __init__(self, path: str, make: bool = True) -> None:
        self.path = path + ".queue"
        self.folder = _open_folder(self.path, make)
        self._entry, self._descriptor = "", -1
        self.own: Set[Tuple[int, int]] = set()
        """Files on which this process holds locks: to open and close one of them here would drop them."""

    def enter(self, text: Dict[str, Any]) -> None:
        """Put this process at the end of the queue.

        Raises:
            OperationError: the folder takes no more files.
        """
        self._entry = WAITS + secrets.token_hex(8)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
            self._descriptor = os.open(self._entry, flags, 0o644, dir_fd=self.folder)
            self.own.add(lock.identity(os.fstat(self._descriptor)))
            os.fchmod(self._descriptor, 0o644)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._descriptor, json.dumps(clean(text)).encode())
        except OSError as error:
            self.leave()
            raise OperationError(
                "the lock's queue takes nobody: {}".format(error.strerror),
                self.path,
                "see that it can be written",
                "lock",
            ) from error

    def hold(self) -> None:
        """Say that this process has the lock now."""
        held = HOLDS + self._entry[len(WAITS) :]
        os.rename(self._entry, held, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self._entry = held

    def keep(self) -> None:
        """Keep clean-ups of old files from folder and ticket. A waiting ticket is only read: to touch it
        would cost this process its place."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)
            if self._entry.startswith(HOLDS):
                os.utime(self._descriptor)
            else:
                os.pread(self._descriptor, 1, 0)

    def show_idle(self, idle: bool) -> None:
        """Show whether this process holds the lock and idles: then it gives way to a run that waits."""
        with contextlib.suppress(OSError):  # then others wait for it elsewhere until it ends
            if idle:
                os.close(os.open(_idle(self._entry), os.O_WRONLY | os.O_CREAT | _FLAGS, 0o644, dir_fd=self.folder))
            else:
                os.unlink(_idle(self._entry), dir_fd=self.folder)

    def leave(self) -> None:
        """Remove this process's ticket; its descriptor goes with the process, so that no lock is dropped early."""
        self._remove(self._entry)

    def _remove(self, entry: str) -> None:
        for name in (_idle(entry), entry):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.folder)

    @property
    def order(self) -> int:
        """This process's own place: smaller is earlier."""
        return os.fstat(self._descriptor).st_ctime_ns

    def is_lost(self) -> bool:
        """Whether this process's ticket was removed."""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def tickets(self) -> List[Ticket]:
        """The living tickets of others, first come first; dead ones of ours are removed by the way."""
        found = [self._look(entry) for entry in os.listdir(self.folder) if entry.startswith((WAITS, HOLDS))]
        return sorted((ticket for ticket in found if ticket), key=lambda ticket: (ticket.order, ticket.entry))

    def ahead(self) -> List[Ticket]:
        """The waiting tickets before this process's."""
        own = (self.order, self._entry)
        return [ticket for ticket in self.tickets() if not ticket.holds and (ticket.order, ticket.entry) < own]

    def somebody_waits(self) -> bool:
        return any(not ticket.holds for ticket in self.tickets())

    def peek(self, entry: str) -> Optional[int]:
        """The process that holds one of the folder's files; None without one, or for another file."""
        with self._opened(entry) as (_, descriptor):
            return None if descriptor is None else lock.holder(descriptor)

    def _look(self, entry: str) -> Optional[Ticket]:
        with contextlib.suppress(OSError), self._opened(entry) as (status, descriptor):
            if descriptor is None or status.st_size > LARGEST_TICKET:
                return None
            pid = lock.holder(descriptor)
            if pid is not None:
                text = _parse(os.read(descriptor, LARGEST_TICKET))
                return Ticket(entry, pid, status.st_uid, status.st_ctime_ns, text, self._idles(entry, status.st_uid))
            self._remove_dead(entry, status)
        return None

    def _idles(self, entry: str, uid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.stat(_idle(entry), dir_fd=self.folder, follow_symlinks=False).st_uid == uid
        return False

    @contextlib.contextmanager
    def _opened(self, entry: str) -> Iterator[Tuple[os.stat_result, Optional[int]]]:
        """Open a file of the folder to look at it, but none of which this process holds a lock."""
        path = os.open(entry, _PATH_ONLY | _FLAGS, dir_fd=self.folder)
        try:
            status = os.fstat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or lock.identity(status) in self.own:
                yield status, None
                return
            descriptor = os.open("/proc/self/fd/{}".format(path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield status, descriptor
            finally:
                os.close(descriptor)
        finally:
            os.close(path)

    def _remove_dead(self, entry: str, status: os.stat_result) -> None:
        if self._entry and time.time() - status.st_ctime > DEAD_AFTER:
            with contextlib.suppress(OSError):  # another user's is left to that user
                self._remove(entry)


def _idle(entry: str) -> str:
    """The empty file that is there while the holder of this ticket idles."""
    return IDLES + entry[len(HOLDS) :]


def _parse(data: bytes) -> Dict[str, str]:
    try:
        return clean(parse_json(data))
    except ValueError:
        return {}


def clean(text: Any) -> Dict[str, str]:
    """The known fields of a ticket, short, and without what could move a terminal's cursor."""
    known = text if isinstance(text, dict) else {}
    values = {name: known.get(name) for name in FIELDS}
    return {
        name: "".join(letter for letter in value[:LONGEST_TEXT] if letter.isprintable())
        for name, value in values.items()
        if isinstance(value, str)
    }


def _open_folder(path: str, make: bool) -> int:
    if make:
        _make_folder(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OperationError("the lock's queue is no folder that you can read", path, _REMOVE, "lock") from error
    if make and not _is_everybodys(descriptor):
        owner = lock.user_name(os.fstat(descriptor).st_uid)
        os.close(descriptor)
        advice = "have {} remove it, or run `chmod 1777` on it".format(owner)
        raise OperationError("the lock's queue belongs to {} alone".format(owner), path, advice, "lock")
    return descriptor


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
        made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        os.fchmod(made, 0o1777)
        os.close(made)
    except FileExistsError:
        pass
    except OSError as error:
        why = "the lock's queue can't be made: {}".format(error.strerror)
        raise OperationError(why, path, "see that the folder above can be written", "lock") from error


def _is_everybodys(descriptor: int) -> bool:
    """Whether all users may write in the folder, and remove only their own files; a new folder needs a moment."""
    for _ in range(20):
        if stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o1777:
            return True
        time.sleep(0.05)
    return False


_REMOVE = "have whoever put it there remove it, or set another lock_path"


UNKNOWN = "somebody"


def holders(descriptors: Sequence[int], queue: Optional[QueueFolder]) -> List[Dict[str, Any]]:
    """Describe each process that holds the lock or one of its slots.

    Args:
        descriptors: the lock's files.
        queue: the lock's queue, where there is one.
    """
    first = next((pid for pid in map(lock.holder, descriptors) if pid is not None), None)
    pids = [first, *(_part_holders(queue) if queue else [])]
    tickets = [ticket for ticket in queue.tickets() if ticket.holds] if queue else []
    believed = [ticket for ticket in tickets if ticket.pid in pids]
    known = {ticket.pid for ticket in believed}
    # Only the lock itself shows strangers, and only where no run of ours is what it shows.
    strangers = [first] if first is not None and first not in known and not believed else []
    return [*map(Ticket.describe, believed), *map(_stranger, strangers)]


def _part_holders(queue: QueueFolder) -> List[int]:
    parts = [name for name in os.listdir(queue.folder) if name.startswith(("slot-", "gpu-"))]
    found = [_holder_of(name, queue) for name in parts]
    return [pid for pid in found if pid is not None]


def _holder_of(name: str, queue: QueueFolder) -> Optional[int]:
    with contextlib.suppress(OSError):
        return queue.peek(name)
    return None


def part_is_free(name: str, queue: Optional[QueueFolder]) -> bool:
    """Whether a slot or GPU is free."""
    return queue is None or _holder_of(name, queue) is None


def _stranger(pid: int) -> Dict[str, Any]:
    """A holder that is no run: its user, and its start."""
    user, since = UNKNOWN, None
    with contextlib.suppress(OSError):
        user, since = lock.user_name(os.stat("/proc/{}".format(pid)).st_uid), _started_at(pid)
    return {
        "user": user,
        "since": since,
        "name": "",
        "run": "",
        "server": "",
        "pid": pid,
        "foreign": True,
        "idle": False,
    }


def _started_at(pid: int) -> Optional[float]:
    """When a process started, in seconds since 1970."""
    ticks = processes.started(pid)
    with open("/proc/stat", encoding="ascii") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    return None if ticks is None else booted + ticks / os.sysconf("SC_CLK_TCK")


def state(path: str, slots: int = 1) -> Dict[str, Any]:
    """The holders of the lock at a path, its queue in order, and its slots, all and free.

    Raises:
        OperationError: what lies there is no lock.
    """
    queue = _queue(path)
    try:
        with _looked_at(path) as descriptors:
            lock_holders = holders(descriptors, queue) if descriptors else []
            waiting = [ticket for ticket in queue.tickets() if not ticket.holds] if queue else []
            free = _free(lock_holders, queue, slots) if descriptors else slots
    finally:
        if queue:
            os.close(queue.folder)
    return {"holders": lock_holders, "waiting": list(map(Ticket.describe, waiting)), "slots": slots, "free": free}


def _queue(path: str) -> Optional[QueueFolder]:
    with contextlib.suppress(FileNotFoundError):
        return QueueFolder(path, make=False)
    return None


@contextlib.contextmanager
def _looked_at(path: str) -> Iterator[List[int]]:
    opened = [lock.open_to_look(name) for name in lock.names(path)]
    descriptors = [descriptor for descriptor in opened if descriptor is not None]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _free(lock_holders: Any, queue: Optional[QueueFolder], slots: int) -> int:
    if slots == 1 or any(holder["foreign"] for holder in lock_holders):
        return 0 if lock_holders else slots
    return sum(part_is_free("slot-{}".format(number), queue) for number in range(slots)) if lock_holders else slots


OPERATIONS: Dict[str, Any] = {"queue.state": state}
