"""The folder that a call works in: `work` in its run's folder, with the project's files as they were at the launch.

They are copies of the snapshot's, which the run may write, and which no other run meets. Where the file system can
clone a file, the kernel does that. A file `work.made` is written when all of them are there: what changes after it, the
run has written. What the run has not changed goes when its call has ended.

For the next call of a warm head a folder is made ahead, `spare/<name>/work` in the allocation's own folder. It is
renamed into the call's folder when that call begins: whatever works in it already goes with it, and a link stays for
paths that are known already.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import signal
import struct
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from slurm_ray_flow.remote import processes, tree
from slurm_ray_flow.remote.errors import OperationError
from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.protocol import find_event

WORK, MADE, SPARE = "work", "work.made", "spare"
AHEAD_BYTES = 64 << 20
"""A project that is larger is not copied before a call wants it."""
LONG = 1.0
"""Copying that took so many seconds is told."""
MOST = 100_000
"""So many files of a run are listed."""
NAMED = 20
"""So many of them are named when the call ends."""
_BYTECODE = re.compile(r"[^.]+\.cpython-\d+\.pyc")
_SMALL = 256 << 10
_PIECE = 1 << 30
_ADVICE = "make room there (`srf clean` removes what nobody uses), or choose another root for this cluster"

Spec = Dict[str, Any]


def placed(spec: Spec, folder: str) -> Spec:
    """The spec with its paths below this folder, as far as they are relative."""
    path = [os.path.join(folder, entry) for entry in spec.get("path") or ()]
    inner = spec.get("working_directory")
    return {**spec, "path": path, "working_directory": os.path.join(folder, inner) if inner else folder}


# ---- making it


def begin(run: Run, spec: Spec) -> int:
    """Make the folders, and have a process of its own fill them meanwhile; gives its pid, or 0 for none.

    Where that fails, the driver tries again, and tells.

    Raises:
        OperationError: they can't be made.
    """
    if not spec.get("snapshot"):
        return 0
    make(spec, run.folder)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            processes.die_with_parent(os.getppid())
            fill(run, spec, run.folder)
        os._exit(0)
    return pid


def make(spec: Spec, folder: str) -> None:
    """Make what the call's process and Ray's workers start in.

    Raises:
        OperationError: it can't be made.
    """
    if spec.get("snapshot"):
        wanted = placed(spec, folder)
        with _told(folder):
            for place in (wanted["working_directory"], *wanted["path"]):
                os.makedirs(place, 0o700, exist_ok=True)


def fill(run: Run, spec: Spec, folder: str) -> None:
    """Copy the snapshot, if that is not done. What a try that was cut has left is written anew.

    Raises:
        OperationError: it can't be copied; what there is of it is gone.
    """
    snapshot, target = spec.get("snapshot"), os.path.join(folder, WORK)
    if not snapshot or os.path.exists(os.path.join(folder, MADE)):
        return
    began = time.monotonic()
    try:
        with _told(target):
            files, size = _copy_folder(str(snapshot), target)
            os.close(os.open(os.path.join(folder, MADE), os.O_WRONLY | os.O_CREAT, 0o600))
    except OperationError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    seconds = time.monotonic() - began
    if seconds > LONG and folder == run.folder:
        run.record("files_copied", files=files, bytes=size, seconds=round(seconds, 3))


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "The run's working directory can't be made: {}".format(error.strerror)
        advice = _ADVICE if full else "see that it can be written, and launch again"
        raise OperationError(what, str(error.filename or path), advice, "environment") from error


def _copy_folder(source: str, target: str) -> Tuple[int, int]:
    """Copy a tree; gives how many files it has, and their bytes."""
    os.makedirs(target, 0o700, exist_ok=True)
    files = size = 0
    with os.scandir(source) as found:
        for entry in found:
            inner = os.path.join(target, entry.name)
            if entry.is_symlink():
                with contextlib.suppress(FileExistsError):
                    os.symlink(os.readlink(entry.path), inner)
            elif entry.is_dir():
                if entry.name != "__pycache__" or os.listdir(entry.path):
                    more, bytes_more = _copy_folder(entry.path, inner)
                    files, size = files + more, size + bytes_more
            else:
                files, size = files + 1, size + _copy_file(entry.path, inner)
    return files, size


def _copy_file(source: str, target: str) -> int:
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(reading)
        mode = 0o700 if found.st_mode & 0o100 else 0o600
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            if found.st_size > _SMALL:
                _copy_content(reading, writing, found.st_size)
            elif os.write(writing, os.read(reading, _SMALL)) != found.st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
            os.utime(writing, ns=(found.st_mtime_ns, found.st_mtime_ns))
        finally:
            os.close(writing)
    except OSError as error:
        error.filename = error.filename or target
        raise
    finally:
        os.close(reading)
    return found.st_size


def _copy_content(reading: int, writing: int, size: int) -> None:
    """By the kernel: it clones where the file system can, and has a file server copy by itself."""
    try:
        while os.copy_file_range(reading, writing, _PIECE):
            pass
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
    done = os.fstat(writing).st_size
    while done < size:  # it can't, between these two
        data = os.pread(reading, 1 << 20, done)
        if not data:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += os.pwrite(writing, data, done)


# ---- ahead of a call


def ahead(allocation: Run, like: str) -> str:
    """The folder to make `work` in for a next call: the allocation's own where that one is still to come, or a spare.

    Args:
        allocation: the allocation's run.
        like: the folder of the run that the next call will be like.
    """
    if like == allocation.folder and find_event(allocation.recorded(), "call_started") is None:
        return like
    spares = os.path.join(allocation.folder, SPARE)
    with contextlib.suppress(OSError):
        os.makedirs(spares, 0o700, exist_ok=True)
        return tempfile.mkdtemp(dir=spares)
    return spares  # the disk is full, or the folder gone: the call will say so


def is_small(spec: Spec) -> bool:
    """Whether the project may be copied before it is known that a call wants it."""
    size = 0
    for place, _, names in os.walk(str(spec.get("snapshot") or "")):
        size += sum(os.lstat(os.path.join(place, name)).st_size for name in names)
        if size > AHEAD_BYTES:
            return False
    return True


def move(spare: str, folder: str) -> None:
    """Make a spare one a run's own; paths that lead to the spare lead there from now on."""
    target = os.path.join(folder, WORK)
    if spare == folder or not os.path.isdir(os.path.join(spare, WORK)):
        return
    os.rename(os.path.join(spare, WORK), target)
    os.symlink(target, os.path.join(spare, WORK))
    with contextlib.suppress(FileNotFoundError):  # it is not filled yet
        os.rename(os.path.join(spare, MADE), os.path.join(folder, MADE))


def forget_spares(run: Run) -> None:
    """Remove what no call took."""
    with contextlib.suppress(OSError, tree.NotOurs):
        tree.remove(run.folder, SPARE)


# ---- what a run has written


class Written:
    """Looks at the folder of a run that is under way, or has ended. No link in it is followed.

    Args:
        run: the run; one that can't be read has written nothing.
    """

    def __init__(self, run: Run) -> None:
        spec: Spec = {}
        with contextlib.suppress(OSError, ValueError):
            spec = run.read_spec()
        self._folder, self._snapshot = run.folder, str(spec.get("snapshot") or "")
        self._inner = str(spec.get("working_directory") or "")
        self._made: Optional[int] = None
        with contextlib.suppress(OSError):
            self._made = os.lstat(os.path.join(run.folder, MADE)).st_mtime_ns

    @property
    def folder(self) -> str:
        """The working directory."""
        return os.path.join(self._folder, self._inner)

    def files(self) -> Iterator[Tuple[str, os.stat_result]]:
        """Each file that the run has made or changed in its working directory, by its path from there."""
        if self._made is None or not self._snapshot:
            return
        for place in self._folders(self._inner):
            for name, status in sorted(self._entries(place).items()):
                if (
                    tree.is_file(status)
                    and not self._is_bytecode(place, name)
                    and self._is_changed(place, name, status)
                ):
                    yield os.path.relpath(os.path.join(place, name), self._inner), status

    def told(self) -> Dict[str, Any]:
        """What the event of the call's end says of them; nothing where there are none."""
        found = [(status.st_size, name) for name, status in _first(self.files())]
        if not found:
            return {}
        largest = [[name, size] for size, name in sorted(found, reverse=True)[:NAMED]]
        return {"files": {"count": len(found), "bytes": sum(size for size, _ in found), "largest": largest}}

    def forget_the_rest(self) -> None:
        """Remove what is as it is in the snapshot."""
        if self._made is None or not self._snapshot:
            return
        for place in reversed(list(self._folders(WORK))):
            with contextlib.suppress(OSError, tree.NotOurs), tree.folder(self._folder, place) as descriptor:
                for name, status in self._entries(place).items():
                    if self._is_bytecode(place, name) and self._is_news(descriptor, place, name, status):
                        os.rename(name, os.path.join(self._origin(place), name), src_dir_fd=descriptor)
                    elif not tree.is_folder(status) and self._is_copy(place, name, status):
                        os.unlink(name, dir_fd=descriptor)
            if place != self._inner and os.path.isdir(self._origin(place)):
                self._remove_if_empty(place)

    def _remove_if_empty(self, place: str) -> None:
        parent, _, name = place.rpartition("/")
        with contextlib.suppress(OSError, tree.NotOurs), tree.folder(self._folder, parent) as descriptor:
            os.rmdir(name, dir_fd=descriptor)

    def _folders(self, place: str) -> Iterator[str]:
        pending = [place]
        while pending:
            here = pending.pop()
            yield here
            inner = [name for name, status in self._entries(here).items() if tree.is_folder(status)]
            pending += ["{}/{}".format(here, name) for name in sorted(inner, reverse=True)]

    def _entries(self, place: str) -> Dict[str, os.stat_result]:
        try:
            return tree.entries(self._folder, place)
        except (OSError, tree.NotOurs):  # it can't be looked into: nothing of it comes home, or goes
            return {}

    def _is_changed(self, place: str, name: str, status: os.stat_result) -> bool:
        assert self._made is not None
        return status.st_ctime_ns >= self._made and not self._is_copy(place, name, status)

    def _is_copy(self, place: str, name: str, status: os.stat_result) -> bool:
        """Whether the snapshot has the same: a file that was written has another time."""
        path = os.path.join(self._origin(place), name)
        try:
            origin = os.lstat(path)
            if tree.is_file(status) and tree.is_file(origin):
                return (status.st_size, status.st_mtime_ns) == (origin.st_size, origin.st_mtime_ns)
            return os.readlink(os.path.join(self._folder, place, name)) == os.readlink(path)
        except OSError:  # the snapshot has none, or one of them is no link
            return False

    def _origin(self, place: str) -> str:
        return os.path.join(self._snapshot, place.partition("/")[2])

    @staticmethod
    def _is_bytecode(place: str, name: str) -> bool:
        return place.endswith("/__pycache__") and _BYTECODE.fullmatch(name) is not None

    def _is_news(self, folder: int, place: str, name: str, status: os.stat_result) -> bool:
        """Whether it is the bytecode of a module that the run has not changed, which the snapshot does not have yet."""
        above, module = os.path.dirname(place), name.partition(".")[0] + ".py"
        path = os.path.join(self._folder, above, module)
        if not tree.is_file(status) or os.path.lexists(os.path.join(self._origin(place), name)):
            return False
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as stream:
            begins = stream.read(16)
        if not os.path.exists(path) or len(begins) < 16:
            return False
        source = os.lstat(path)
        same = struct.pack("<3L", 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
        return begins[4:] == same and self._is_copy(above, module, source)


def _first(found: Iterator[Any]) -> List[Any]:
    return list(itertools.islice(found, MOST))


def written(root: str, run_id: str) -> Dict[str, Any]:
    """What a run has written in its working directory, links not followed.

    Returns:
        `folder`, the working directory; `files`: path from there, size in bytes and time in nanoseconds of each;
        `more`, whether there are still more files.
    """
    here = Written(Run(root, run_id))
    found = [[name, status.st_size, status.st_mtime_ns] for name, status in _first(here.files())]
    return {"folder": here.folder, "files": found, "more": len(found) == MOST}


OPERATIONS: Dict[str, Any] = {"written": written}
