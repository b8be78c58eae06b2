"""Puts files of a run in their places at home: nothing of what a cluster says leads out of the folder they go to.

They come to a private folder beside their places, and are renamed from there, one by one, by descriptors of folders
that are opened without following a link.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.outputs import WrittenFile, may_come_home
from slurm_ray_flow.core.quantities import format_memory

TELL_SECONDS = 1.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Source(Protocol):
    """Where the files are."""

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        """Have rsync copy files of a folder into one at home."""


@dataclass
class Brought:
    """What became of the files.

    Attributes:
        paths: of those that are at home now.
        left: why the others were not brought, by their paths on the cluster.
        changed: of those, the ones that were changed at home.
    """

    paths: list[Path] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)


class Homecoming:
    """Brings files into a folder.

    Args:
        target: the folder; made where it is missing.
        since: what was changed here after this, in seconds since 1970, stays.
        overwrite: it does not stay.
    """

    def __init__(self, target: Path, since: float, overwrite: bool) -> None:
        self._target, self._since, self._overwrite = target, since, overwrite
        self._brought = Brought()

    def bring(
        self, source: Source, folder: PurePosixPath, files: Sequence[WrittenFile], tell: Callable[[str], None]
    ) -> Brought:
        """Bring files of a folder of a cluster.

        Args:
            source: the cluster.
            folder: the folder there.
            files: which ones.
            tell: gets how far it is.

        Raises:
            SyncError: the folder can't be written, or rsync fails.
            ConnectionFailed: the cluster does not answer.
        """
        try:
            self._target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".srf-", dir=self._target) as staging:
                wanted = [file for file in files if self._is_wanted(file)]
                try:
                    if wanted:
                        with _progress(Path(staging), wanted, tell):
                            source.bring(folder, [file.path for file in wanted], Path(staging))
                finally:
                    for file in wanted:
                        self._place(staging, file)
        except OSError as problem:
            raise SyncError(
                f"the files of the run can't be written: {problem.strerror}",
                where=str(problem.filename or self._target),
                advice="see that it can be written and has room, or name another folder: `srf fetch RUN PATTERN --to`",
            ) from problem
        return self._brought

    def _is_wanted(self, file: WrittenFile) -> bool:
        if not may_come_home(file.path):
            self._brought.left[file.path] = "its name leads elsewhere"
            return False
        try:
            with _parent(self._target, file.path, make=False) as folder:
                return self._may_replace(folder, file)
        except FileNotFoundError:
            return True
        except OSError:
            self._brought.left[file.path] = "a folder on its way is a link or a file here"
            return False

    def _may_replace(self, folder: int, file: WrittenFile) -> bool:
        try:
            here = os.stat(file.path.rpartition("/")[2], dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(here.st_mode):
            self._brought.left[file.path] = "there is a link or a folder of this name here"
        elif (here.st_size, here.st_mtime_ns) == (file.size, file.changed_ns):
            self._brought.paths.append(self._target / file.path)  # it came before
        elif here.st_mtime > self._since and not self._overwrite:
            self._brought.left[file.path] = "it was changed here since the launch"
            self._brought.changed.add(file.path)
        else:
            return True
        return False

    def _place(self, staging: str, file: WrittenFile) -> None:
        came = Path(staging, file.path)
        try:
            here = came.lstat()
        except OSError:
            self._brought.left[file.path] = "it did not come"
            return
        if not stat.S_ISREG(here.st_mode):
            self._brought.left[file.path] = "it is no plain file"
            return
        if here.st_mtime > time.time():  # the cluster's clock is ahead: here it would count as changed for long
            os.utime(came)
        try:
            with _parent(self._target, file.path, make=True) as folder:
                if self._may_replace(folder, file):
                    os.rename(came, file.path.rpartition("/")[2], dst_dir_fd=folder)
                    self._brought.paths.append(self._target / file.path)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            self._brought.left[file.path] = "a folder on its way is a link or a file here"


@contextlib.contextmanager
def _parent(target: Path, path: str, make: bool) -> Iterator[int]:
    """The folder of a file below another one, whose every part must be a folder and no link.

    Raises:
        OSError: a part is a link or a file, or can't be made.
    """
    descriptor = os.open(target, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in path.split("/")[:-1]:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            inner = os.open(part, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _progress(staging: Path, files: Sequence[WrittenFile], tell: Callable[[str], None]) -> Iterator[None]:
    total, over = format_memory(sum(file.size for file in files)), threading.Event()

    def watch() -> None:
        while not over.wait(TELL_SECONDS):
            tell(f"{format_memory(_size(staging))} of {total}")

    thread = threading.Thread(target=watch, daemon=True, name="srf-outputs")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _size(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # rsync has just renamed it
                size += Path(place, name).lstat().st_size
    return size
