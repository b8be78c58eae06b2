"""The folder that a call works in: `work` in its run's folder, with the project's files as they were at the launch.

They are copies of the snapshot's, which the run may write, and which no other run meets. `work.made` is written when
all are there: what changes later, the run has written. What it has not changed goes when its call has ended.

For the next call of a warm head, `spare/<name>/work` in the allocation's folder is made ahead, and renamed into that
call's folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import signal
import tempfile
import time
from typing import Any, Dict, Iterator, Tuple

from slurm_ray_flow.remote.shared import processes, tree
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.protocol import OperationError, find_event

WORK, MADE, SPARE = "work", "work.made", "spare"
AHEAD_BYTES = 64 << 20
"""A project that is larger is not copied before a call wants it."""
LONG = 1.0
"""Copying that took so many seconds is told."""
MOST = 100_000
"""So many files of a run are listed."""
NAMED = 20
"""So many of them are named when the call ends."""
_SMALL = 256 << 10
_FICLONE = 0x40049409
_FULL = {
    errno.ENOSPC: "make room there (`srf clean` removes what nobody uses), or choose another root for this cluster"
}
_FULL[errno.EDQUOT] = _FULL[errno.ENOSPC]

Spec = Dict[str, Any]


def with_absolute_paths(spec: Spec, folder: str) -> Spec:
    """The spec with its paths below this folder, as far as they are relative."""
    path = [os.path.join(folder, entry) for entry in spec.get("path") or ()]
    inner = spec.get("working_directory")
    return {**spec, "path": path, "working_directory": os.path.join(folder, inner) if inner else folder}


# ---- making it


def begin(run: RunFiles, spec: Spec) -> int:
    """Make the folders, and have a process of its own fill them; gives its pid. Where it fails, the driver tries again.

    Raises:
        OperationError: they can't be made.
    """
    make(spec, run.folder)
    pid = os.fork() if spec.get("snapshot") else 0
    if pid == 0 and spec.get("snapshot"):
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
        wanted = with_absolute_paths(spec, folder)
        with _told(folder):
            for place in (wanted["working_directory"], *wanted["path"]):
                os.makedirs(place, 0o700, exist_ok=True)


def fill(run: RunFiles, spec: Spec, folder: str) -> None:
    """Copy the snapshot, if that is not done. What a try that was cut has left is written anew.

    Raises:
        OperationError: it can't be copied; what there is of it is gone.
    """
    target, made = os.path.join(folder, WORK), os.path.join(folder, MADE)
    if not spec.get("snapshot") or os.path.exists(made):
        return
    began = time.monotonic()
    try:
        with _told(target):
            size = _copy_folder(str(spec["snapshot"]), target)
            with open(made, "w", encoding="ascii") as file:
                file.write(str(size))
    except OperationError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    seconds = time.monotonic() - began
    if seconds > LONG and folder == run.folder:
        run.record("files_copied", bytes=size, seconds=round(seconds, 3))


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "The run's working directory can't be made: {}".format(error.strerror)
        advice = _FULL.get(error.errno or 0, "see that it can be written, and launch again")
        raise OperationError(what, str(error.filename or path), advice, "environment") from error


def _copy_folder(source: str, target: str) -> int:
    """Copy a tree; gives the bytes of its files."""
    os.makedirs(target, 0o700, exist_ok=True)
    size = 0
    with os.scandir(source) as found:
        for entry in found:
            inner = target + "/" + entry.name
            if entry.is_symlink():
                with contextlib.suppress(FileExistsError):
                    os.symlink(os.readlink(entry.path), inner)
            elif not entry.is_dir():
                size += _copy_file(entry.path, inner)
            elif entry.name != "__pycache__" or os.listdir(entry.path):
                size += _copy_folder(entry.path, inner)
    return size


def _copy_file(source: str, target: str) -> int:
    """Copy a file: cloned where the file system can, read and written where it can't."""
    with open(os.open(source, os.O_RDONLY), "rb", buffering=0) as reading:
        status = os.fstat(reading.fileno())
        mode = 0o700 if status.st_mode & 0o100 else 0o600
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb", buffering=0) as writing:
            try:
                if status.st_size > _SMALL:
                    fcntl.ioctl(writing, _FICLONE, reading.fileno())
                else:
                    writing.write(reading.read(_SMALL))
            except OSError as error:
                if error.errno in _FULL:
                    raise OSError(error.errno, error.strerror, target) from None
            if os.fstat(writing.fileno()).st_size != status.st_size:
                _copy_content(reading, writing, target)
            os.utime(writing.fileno(), ns=(status.st_mtime_ns, status.st_mtime_ns))
    return status.st_size


def _copy_content(reading: Any, writing: Any, target: str) -> None:
    reading.seek(0)
    writing.seek(0)
    try:
        shutil.copyfileobj(reading, writing, 1 << 20)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None


# ---- ahead of a call


def ahead(allocation: RunFiles, like: str) -> str:
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


def fill_ahead(run: RunFiles, spec: Spec, folder: str) -> None:
    """Copy the snapshot for a call that is like this run's, unless it is large."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(run.folder, MADE), encoding="ascii") as file:
        if int(file.read()) <= AHEAD_BYTES:
            fill(run, spec, folder)


def move(spare: str, folder: str) -> None:
    """Make a spare one a run's own, if it is filled."""
    if spare != folder and os.path.exists(os.path.join(spare, MADE)):
        for name in (WORK, MADE):
            os.rename(os.path.join(spare, name), os.path.join(folder, name))


def forget_spares(run: RunFiles) -> None:
    """Remove what no call took."""
    with contextlib.suppress(OSError, tree.NotOurs):
        tree.remove(run.folder, SPARE)


# ---- what a run has written


class Written:
    """Looks at the folder of a run that is under way, or has ended. No link in it is followed.

    Args:
        run: the run; one that can't be read has written nothing.
    """

    def __init__(self, run: RunFiles) -> None:
        self._folder, self._snapshot, self._inner = run.folder, "", ""
        with contextlib.suppress(OSError, ValueError):
            spec = run.read_spec()
            self._made = os.lstat(os.path.join(run.folder, MADE)).st_mtime_ns
            self._snapshot, self._inner = str(spec.get("snapshot") or ""), str(spec.get("working_directory") or "")

    @property
    def folder(self) -> str:
        """The working directory."""
        return os.path.join(self._folder, self._inner)

    def files(self) -> Iterator[Tuple[str, int, int]]:
        """Path, size and time in nanoseconds of each file that the run has made or changed in its working directory."""
        for folder in self._folders(self._inner):
            for name, status in sorted(self._entries(folder).items()):
                is_changed = status.st_ctime_ns >= self._made and not self._is_copy(folder, name, status)
                if tree.is_file(status) and is_changed and not folder.endswith("/__pycache__"):
                    yield os.path.relpath(folder + "/" + name, self._inner), status.st_size, status.st_mtime_ns

    def told(self) -> Dict[str, Any]:
        """What the event of the call's end says of them; nothing where there are none."""
        by_size = sorted(((size, name) for name, size, _ in itertools.islice(self.files(), MOST)), reverse=True)
        largest = [[name, size] for size, name in by_size[:NAMED]]
        files = {"count": len(by_size), "bytes": sum(size for size, _ in by_size), "largest": largest}
        return {"files": files} if by_size else {}

    def forget_the_rest(self) -> None:
        """Remove what is as it is in the snapshot; new bytecode goes there, as Python looks whether it fits."""
        for folder in reversed(list(self._folders(WORK))):
            with contextlib.suppress(OSError, tree.NotOurs), tree.folder(self._folder, folder) as descriptor:
                for name, status in self._entries(folder).items():
                    if self._is_copy(folder, name, status):
                        os.unlink(name, dir_fd=descriptor)
                    elif folder.endswith("/__pycache__") and name.endswith(".pyc") and tree.is_file(status):
                        os.rename(name, self._origin(folder, name), src_dir_fd=descriptor)
            parent, _, name = folder.rpartition("/")
            if folder != self._inner and os.path.isdir(self._origin(folder)):
                with contextlib.suppress(OSError, tree.NotOurs), tree.folder(self._folder, parent) as descriptor:
                    os.rmdir(name, dir_fd=descriptor)

    def _folders(self, place: str) -> Iterator[str]:
        pending = [place] if self._snapshot else []
        while pending:
            here = pending.pop()
            yield here
            inner = [name for name, status in self._entries(here).items() if tree.is_folder(status)]
            pending += ["{}/{}".format(here, name) for name in sorted(inner, reverse=True)]

    def _entries(self, place: str) -> Dict[str, os.stat_result]:
        with contextlib.suppress(OSError, tree.NotOurs):  # it can't be looked into: nothing of it comes home, or goes
            return tree.entries(self._folder, place)
        return {}

    def _is_copy(self, folder: str, name: str, status: os.stat_result) -> bool:
        """Whether the snapshot has the same: a file that was written has another time."""
        origin = self._origin(folder, name)
        with contextlib.suppress(OSError):  # the snapshot has none, or one of them is no link
            there = os.lstat(origin)
            if tree.is_file(status) and tree.is_file(there):
                return (status.st_size, status.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
            return os.readlink(os.path.join(self._folder, folder, name)) == os.readlink(origin)
        return False

    def _origin(self, place: str, name: str = "") -> str:
        return os.path.join(self._snapshot, place.partition("/")[2], name)


def written(root: str, run_id: str) -> Dict[str, Any]:
    """What a run has written in its working directory, links not followed.

    Returns:
        `folder`, the working directory; `files`: path from there, size in bytes and time in nanoseconds of each;
        `more`, whether there are still more files.
    """
    here = Written(RunFiles(root, run_id))
    found = list(itertools.islice(here.files(), MOST))
    return {"folder": here.folder, "files": found, "more": len(found) == MOST}


OPERATIONS: Dict[str, Any] = {"workplace.written": written}
