"""The queue of a lock: a folder with a ticket for each run, and an operation that lists holders and queue."""

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

WAITING, HOLDING, IDLING = "w-", "h-", "i-"
"""The prefixes of the names of tickets, and of the marks of idle holders."""
FIELDS = ("run", "name", "server")
LONGEST_FIELD, LARGEST_TICKET = 200, 4096
DEAD_AFTER = 10.0
"""Seconds until a ticket that no process has locked is removed; a new one is not locked yet for a moment."""
_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Ticket(NamedTuple):
    """One run in the queue, as other runs see it."""

    entry: str
    pid: int
    uid: int
    order: int
    fields: Dict[str, str]
    idle: bool = False

    @property
    def holds(self) -> bool:
        return self.entry.startswith(HOLDING)

    def describe(self) -> Dict[str, Any]:
        """The ticket's fields for people and programs."""
        owner = {"user": lock.user_name(self.uid), "since": self.order / 1e9, "pid": self.pid, "foreign": False}
        owner["idle"] = self.idle
        return {**{name: self.fields.get(name, "") for name in FIELDS}, **owner}


class QueueFolder:
    """The folder of a lock's queue.

    Args:
        path: the lock's file.
        make: whether to make a missing folder.

    Raises:
        OperationError: the path can't be a queue.
        FileNotFoundError: there is no folder, and `make` is False.
    """

    def __init__(self, path: str, make: bool = True) -> None:
        self.path = path + ".queue"
        self.folder = _open_folder(self.path, make)
        self._entry, self._descriptor = "", -1
        self.own_files: Set[Tuple[int, int]] = set()
        """Files that this process has locked: opening and closing one of them would release the locks."""

    def enter(self, fields: Dict[str, Any]) -> None:
        """Put this process at the end of the queue.

        Raises:
            OperationError: the ticket can't be written.
        """
        self._entry = WAITING + secrets.token_hex(8)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
            self._descriptor = os.open(self._entry, flags, 0o644, dir_fd=self.folder)
            self.own_files.add(lock.identity(os.fstat(self._descriptor)))
            os.fchmod(self._descriptor, 0o644)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._descriptor, json.dumps(clean(fields)).encode())
        except OSError as error:
            self.leave()
            raise OperationError(
                "the lock's queue takes nobody: {}".format(error.strerror),
                self.path,
                "see that it can be written",
                "lock",
            ) from error

    def hold(self) -> None:
        """Mark the ticket: this process holds the lock now."""
        new_entry = HOLDING + self._entry[len(WAITING) :]
        os.rename(self._entry, new_entry, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self._entry = new_entry

    def keep(self) -> None:
        """Protect folder and ticket from clean-ups of old files. A waiting ticket is only read, since a change of it
        would put this process at the end of the queue."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)
            if self._entry.startswith(HOLDING):
                os.utime(self._descriptor)
            else:
                os.pread(self._descriptor, 1, 0)

    def show_idle(self, idle: bool) -> None:
        """Mark the ticket of a holder that is idle: it ends when another run waits."""
        with contextlib.suppress(OSError):  # without the mark, other runs wait until it ends
            if idle:
                os.close(os.open(_idle_mark(self._entry), os.O_WRONLY | os.O_CREAT | _FLAGS, 0o644, dir_fd=self.folder))
            else:
                os.unlink(_idle_mark(self._entry), dir_fd=self.folder)

    def leave(self) -> None:
        """Remove this process's ticket; the process's end closes its descriptor, so that no lock is released early."""
        self._remove(self._entry)

    def _remove(self, entry: str) -> None:
        for name in (_idle_mark(entry), entry):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.folder)

    @property
    def order(self) -> int:
        """This process's position in the queue: a smaller number is earlier."""
        return os.fstat(self._descriptor).st_ctime_ns

    def is_lost(self) -> bool:
        """Whether this process's ticket was removed."""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def tickets(self) -> List[Ticket]:
        """The live tickets of other processes in order; this user's dead ones are removed."""
        found = [self._read_ticket(entry) for entry in os.listdir(self.folder) if entry.startswith((WAITING, HOLDING))]
        return sorted((ticket for ticket in found if ticket), key=lambda ticket: (ticket.order, ticket.entry))

    def ahead(self) -> List[Ticket]:
        """The waiting tickets ahead of this process's."""
        own = (self.order, self._entry)
        return [ticket for ticket in self.tickets() if not ticket.holds and (ticket.order, ticket.entry) < own]

    def has_waiting_runs(self) -> bool:
        return any(not ticket.holds for ticket in self.tickets())

    def part_holder(self, entry: str) -> Optional[int]:
        """The process that holds the lock of a slot or a GPU; None if it is free, or no lock file."""
        with self._opened(entry) as (_, descriptor):
            return None if descriptor is None else lock.holder_pid(descriptor)

    def _read_ticket(self, entry: str) -> Optional[Ticket]:
        with contextlib.suppress(OSError), self._opened(entry) as (status, descriptor):
            if descriptor is None or status.st_size > LARGEST_TICKET:
                return None
            pid = lock.holder_pid(descriptor)
            if pid is not None:
                fields = _parse(os.read(descriptor, LARGEST_TICKET))
                idle = self._is_idle(entry, status.st_uid)
                return Ticket(entry, pid, status.st_uid, status.st_ctime_ns, fields, idle)
            self._remove_dead(entry, status)
        return None

    def _is_idle(self, entry: str, uid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.stat(_idle_mark(entry), dir_fd=self.folder, follow_symlinks=False).st_uid == uid
        return False

    @contextlib.contextmanager
    def _opened(self, entry: str) -> Iterator[Tuple[os.stat_result, Optional[int]]]:
        """Open a file of the folder to read it, unless this process has locked it: that yields no descriptor."""
        path = os.open(entry, _PATH_ONLY | _FLAGS, dir_fd=self.folder)
        try:
            status = os.fstat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or lock.identity(status) in self.own_files:
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
            with contextlib.suppress(OSError):  # another user's ticket, which only that user can remove
                self._remove(entry)


def _idle_mark(entry: str) -> str:
    """The name of the empty file that exists while the holder of this ticket is idle."""
    return IDLING + entry[len(HOLDING) :]


def _parse(data: bytes) -> Dict[str, str]:
    try:
        return clean(parse_json(data))
    except ValueError:
        return {}


def clean(fields: Any) -> Dict[str, str]:
    """The known fields of a ticket, shortened, and without characters that control a terminal."""
    raw = fields if isinstance(fields, dict) else {}
    values = {name: raw.get(name) for name in FIELDS}
    return {
        name: "".join(character for character in value[:LONGEST_FIELD] if character.isprintable())
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
        raise OperationError("the lock's queue is no folder that you can read", path, _REMOVE_ADVICE, "lock") from error
    if make and not _is_public(descriptor):
        owner = lock.user_name(os.fstat(descriptor).st_uid)
        os.close(descriptor)
        advice = "have {} remove it, or run `chmod 1777` on it".format(owner)
        raise OperationError("the lock's queue belongs to {} alone".format(owner), path, advice, "lock")
    return descriptor


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        os.fchmod(descriptor, 0o1777)
        os.close(descriptor)
    except FileExistsError:
        pass
    except OSError as error:
        why = "the lock's queue can't be made: {}".format(error.strerror)
        raise OperationError(why, path, "see that the folder above can be written", "lock") from error


def _is_public(descriptor: int) -> bool:
    """Whether all users may write to the folder and remove only their own files; waits a moment for a new one."""
    for _ in range(20):
        if stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o1777:
            return True
        time.sleep(0.05)
    return False


_REMOVE_ADVICE = "have whoever put it there remove it, or set another lock_path"


UNKNOWN_USER = "somebody"


def holders(descriptors: Sequence[int], queue: Optional[QueueFolder]) -> List[Dict[str, Any]]:
    """Describe each process that holds the lock or one of its slots.

    Args:
        descriptors: the lock's files.
        queue: the lock's queue, where there is one.
    """
    first = next((pid for pid in map(lock.holder_pid, descriptors) if pid is not None), None)
    pids = [first, *(_slot_and_gpu_holders(queue) if queue else [])]
    tickets = [ticket for ticket in queue.tickets() if ticket.holds] if queue else []
    confirmed = [ticket for ticket in tickets if ticket.pid in pids]
    known = {ticket.pid for ticket in confirmed}
    # Other programs hold the lock itself, and only if no run with a ticket does.
    foreign_pids = [first] if first is not None and first not in known and not confirmed else []
    return [*map(Ticket.describe, confirmed), *map(_foreign_holder, foreign_pids)]


def _slot_and_gpu_holders(queue: QueueFolder) -> List[int]:
    parts = [name for name in os.listdir(queue.folder) if name.startswith(("slot-", "gpu-"))]
    pids = [_part_holder(name, queue) for name in parts]
    return [pid for pid in pids if pid is not None]


def _part_holder(name: str, queue: QueueFolder) -> Optional[int]:
    with contextlib.suppress(OSError):
        return queue.part_holder(name)
    return None


def part_is_free(name: str, queue: Optional[QueueFolder]) -> bool:
    """Whether a slot or GPU is free."""
    return queue is None or _part_holder(name, queue) is None


def _foreign_holder(pid: int) -> Dict[str, Any]:
    """A holder without a ticket, another program: its user and its start."""
    user, since = UNKNOWN_USER, None
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
    """A process's start, in seconds since 1970."""
    ticks = processes.started(pid)
    with open("/proc/stat", encoding="ascii") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    return None if ticks is None else booted + ticks / os.sysconf("SC_CLK_TCK")


def state(path: str, slots: int = 1) -> Dict[str, Any]:
    """The holders of the lock at a path, its queue in order, and the numbers of all slots and of free ones.

    Raises:
        OperationError: the path is no lock.
    """
    queue = _existing_queue(path)
    try:
        with _opened_lock_files(path) as descriptors:
            lock_holders = holders(descriptors, queue) if descriptors else []
            waiting = [ticket for ticket in queue.tickets() if not ticket.holds] if queue else []
            free = _free_slots(lock_holders, queue, slots) if descriptors else slots
    finally:
        if queue:
            os.close(queue.folder)
    return {"holders": lock_holders, "waiting": list(map(Ticket.describe, waiting)), "slots": slots, "free": free}


def _existing_queue(path: str) -> Optional[QueueFolder]:
    with contextlib.suppress(FileNotFoundError):
        return QueueFolder(path, make=False)
    return None


@contextlib.contextmanager
def _opened_lock_files(path: str) -> Iterator[List[int]]:
    opened = [lock.open_to_look(name) for name in lock.file_paths(path)]
    descriptors = [descriptor for descriptor in opened if descriptor is not None]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _free_slots(lock_holders: Any, queue: Optional[QueueFolder], slots: int) -> int:
    if slots == 1 or any(holder["foreign"] for holder in lock_holders):
        return 0 if lock_holders else slots
    return sum(part_is_free("slot-{}".format(number), queue) for number in range(slots)) if lock_holders else slots


OPERATIONS: Dict[str, Any] = {"queue.state": state}
