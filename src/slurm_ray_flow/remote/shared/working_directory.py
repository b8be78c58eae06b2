"""The working directory of a call: `work` in its run's folder, with the project's files as they were at the launch.

The files are copies of the snapshot's, which only this run sees and may write. `work.made` is written after the last
copy: the run has written what changes later. Unchanged files are removed when the call has ended.

For the next call of a warm cluster, `spare/<name>/work` in the allocation's folder is filled in advance, and renamed
into that call's folder.
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
"""The largest project, in bytes, that is copied in advance."""
SLOW_COPY_SECONDS = 1.0
"""Seconds from which on a copy is recorded as an event."""
LIST_LIMIT = 100_000
"""The most files of a run that are listed."""
NAMED_FILES = 20
"""The most files that the event of a call's end names."""
_SMALL_FILE = 256 << 10
_FICLONE = 0x40049409
_DISK_FULL_ADVICE = {
    errno.ENOSPC: "make room there (`srf clean` removes what nobody uses), or choose another root for this cluster"
}
_DISK_FULL_ADVICE[errno.EDQUOT] = _DISK_FULL_ADVICE[errno.ENOSPC]

Spec = Dict[str, Any]


def with_absolute_paths(spec: Spec, folder: str) -> Spec:
    """The spec with its relative paths made absolute, below this folder."""
    path = [os.path.join(folder, entry) for entry in spec.get("path") or ()]
    inner = spec.get("working_directory")
    return {**spec, "path": path, "working_directory": os.path.join(folder, inner) if inner else folder}


# ---- making the folder


def begin(run: RunFiles, spec: Spec) -> int:
    """Make the folders, and start a process that fills them; returns its pid. If it fails, the driver fills them.

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
    """Make the folders in which the driver and Ray's workers start.

    Raises:
        OperationError: they can't be made.
    """
    if spec.get("snapshot"):
        absolute = with_absolute_paths(spec, folder)
        with _explained_errors(folder):
            for folder_to_make in (absolute["working_directory"], *absolute["path"]):
                os.makedirs(folder_to_make, 0o700, exist_ok=True)


def fill(run: RunFiles, spec: Spec, folder: str) -> None:
    """Copy the snapshot, unless it is complete already. Files of an interrupted copy are written again.

    Raises:
        OperationError: it can't be copied; the incomplete copy is removed.
    """
    target, mark = os.path.join(folder, WORK), os.path.join(folder, MADE)
    if not spec.get("snapshot") or os.path.exists(mark):
        return
    began = time.monotonic()
    try:
        with _explained_errors(target):
            size = _copy_folder(str(spec["snapshot"]), target)
            with open(mark, "w", encoding="ascii") as file:
                file.write(str(size))
    except OperationError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    seconds = time.monotonic() - began
    if seconds > SLOW_COPY_SECONDS and folder == run.folder:
        run.record("files_copied", bytes=size, seconds=round(seconds, 3))


@contextlib.contextmanager
def _explained_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "The run's working directory can't be made: {}".format(error.strerror)
        advice = _DISK_FULL_ADVICE.get(error.errno or 0, "see that it can be written, and launch again")
        raise OperationError(what, str(error.filename or path), advice, "environment") from error


def _copy_folder(source: str, target: str) -> int:
    """Copy a folder with its content; returns the bytes of its files."""
    os.makedirs(target, 0o700, exist_ok=True)
    size = 0
    with os.scandir(source) as scan:
        for entry in scan:
            target_path = target + "/" + entry.name
            if entry.is_symlink():
                with contextlib.suppress(FileExistsError):
                    os.symlink(os.readlink(entry.path), target_path)
            elif not entry.is_dir():
                size += _copy_file(entry.path, target_path)
            elif entry.name != "__pycache__" or os.listdir(entry.path):
                size += _copy_folder(entry.path, target_path)
    return size


def _copy_file(source: str, target: str) -> int:
    """Copy a file by cloning it; on a file system that can't clone, by reading and writing."""
    with open(os.open(source, os.O_RDONLY), "rb", buffering=0) as reading:
        status = os.fstat(reading.fileno())
        mode = 0o700 if status.st_mode & 0o100 else 0o600
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb", buffering=0) as writing:
            try:
                if status.st_size > _SMALL_FILE:
                    fcntl.ioctl(writing, _FICLONE, reading.fileno())
                else:
                    writing.write(reading.read(_SMALL_FILE))
            except OSError as error:
                if error.errno in _DISK_FULL_ADVICE:
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


# ---- in advance of a call


def ahead(allocation: RunFiles, like: str) -> str:
    """The folder for the `work` of the next call: the allocation's own before its first call, then a spare one.

    Args:
        allocation: the allocation's run.
        like: the folder of the run whose snapshot the next call probably uses.
    """
    if like == allocation.folder and find_event(allocation.recorded(), "call_started") is None:
        return like
    spare_folders = os.path.join(allocation.folder, SPARE)
    with contextlib.suppress(OSError):
        os.makedirs(spare_folders, 0o700, exist_ok=True)
        return tempfile.mkdtemp(dir=spare_folders)
    return spare_folders  # the disk is full, or the folder gone: the call reports it


def fill_spare(run: RunFiles, spec: Spec, folder: str) -> None:
    """Copy the snapshot of this run for the next call, unless it is large."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(run.folder, MADE), encoding="ascii") as file:
        if int(file.read()) <= AHEAD_BYTES:
            fill(run, spec, folder)


def move(spare: str, folder: str) -> None:
    """Move a spare working directory into a run's folder, if it is complete."""
    if spare != folder and os.path.exists(os.path.join(spare, MADE)):
        for name in (WORK, MADE):
            os.rename(os.path.join(spare, name), os.path.join(folder, name))


def remove_spares(run: RunFiles) -> None:
    """Remove spare working directories."""
    with contextlib.suppress(OSError, tree.NotOurs):
        tree.remove(run.folder, SPARE)


# ---- files that a run has written


class Written:
    """The files that a run has written, during its call or after its end. No link is followed.

    Args:
        run: the run; one whose spec can't be read has written no files.
    """

    def __init__(self, run: RunFiles) -> None:
        self._run_folder, self._snapshot, self._directory = run.folder, "", ""
        with contextlib.suppress(OSError, ValueError):
            spec = run.read_spec()
            self._copied_at = os.lstat(os.path.join(run.folder, MADE)).st_mtime_ns
            self._snapshot, self._directory = str(spec.get("snapshot") or ""), str(spec.get("working_directory") or "")

    @property
    def folder(self) -> str:
        """The working directory."""
        return os.path.join(self._run_folder, self._directory)

    def files(self) -> Iterator[Tuple[str, int, int]]:
        """Path, size and time in nanoseconds of each file that the run has made or changed in its working directory."""
        for folder in self._folders(self._directory):
            for name, status in sorted(self._entries(folder).items()):
                is_changed = status.st_ctime_ns >= self._copied_at and not self._is_copy(folder, name, status)
                if tree.is_file(status) and is_changed and not folder.endswith("/__pycache__"):
                    yield os.path.relpath(folder + "/" + name, self._directory), status.st_size, status.st_mtime_ns

    def event_fields(self) -> Dict[str, Any]:
        """The fields of the event `call_ended` about these files; empty if there are none."""
        by_size = sorted(((size, name) for name, size, _ in itertools.islice(self.files(), LIST_LIMIT)), reverse=True)
        largest = [[name, size] for size, name in by_size[:NAMED_FILES]]
        files = {"count": len(by_size), "bytes": sum(size for size, _ in by_size), "largest": largest}
        return {"files": files} if by_size else {}

    def remove_copies(self) -> None:
        """Remove files that equal the snapshot's; move new bytecode to the snapshot, as Python checks it before use."""
        for folder in reversed(list(self._folders(WORK))):
            with contextlib.suppress(OSError, tree.NotOurs), tree.folder(self._run_folder, folder) as descriptor:
                for name, status in self._entries(folder).items():
                    if self._is_copy(folder, name, status):
                        os.unlink(name, dir_fd=descriptor)
                    elif folder.endswith("/__pycache__") and name.endswith(".pyc") and tree.is_file(status):
                        os.rename(name, self._origin(folder, name), src_dir_fd=descriptor)
            parent, _, name = folder.rpartition("/")
            if folder != self._directory and os.path.isdir(self._origin(folder)):
                with contextlib.suppress(OSError, tree.NotOurs), tree.folder(self._run_folder, parent) as descriptor:
                    os.rmdir(name, dir_fd=descriptor)

    def _folders(self, top: str) -> Iterator[str]:
        pending = [top] if self._snapshot else []
        while pending:
            folder = pending.pop()
            yield folder
            subfolders = [name for name, status in self._entries(folder).items() if tree.is_folder(status)]
            pending += ["{}/{}".format(folder, name) for name in sorted(subfolders, reverse=True)]

    def _entries(self, folder: str) -> Dict[str, os.stat_result]:
        with contextlib.suppress(OSError, tree.NotOurs):  # files of an unreadable folder are left alone
            return tree.entries(self._run_folder, folder)
        return {}

    def _is_copy(self, folder: str, name: str, status: os.stat_result) -> bool:
        """Whether the snapshot has an equal file, of the same size and time, or an equal link."""
        origin = self._origin(folder, name)
        with contextlib.suppress(OSError):  # the snapshot has no such file, or one of the two is no link
            origin_status = os.lstat(origin)
            if tree.is_file(status) and tree.is_file(origin_status):
                return (status.st_size, status.st_mtime_ns) == (origin_status.st_size, origin_status.st_mtime_ns)
            return os.readlink(os.path.join(self._run_folder, folder, name)) == os.readlink(origin)
        return False

    def _origin(self, folder: str, name: str = "") -> str:
        return os.path.join(self._snapshot, folder.partition("/")[2], name)


def written(root: str, run_id: str) -> Dict[str, Any]:
    """The files that a run has written in its working directory, links not followed.

    Returns:
        `folder`, the working directory; `files`: path below it, size in bytes and time in nanoseconds of each; `more`,
        whether there are more files than listed.
    """
    directory = Written(RunFiles(root, run_id))
    files = list(itertools.islice(directory.files(), LIST_LIMIT))
    return {"folder": directory.folder, "files": files, "more": len(files) == LIST_LIMIT}


OPERATIONS: Dict[str, Any] = {"workplace.written": written}
