"""Copies of a run's files at home: no name from a cluster leads out of the target folder.

rsync writes them into a private folder inside the target; then each is renamed to its place, if nothing is in its way.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.launch_events import Note, publisher
from slurm_ray_flow.core.outputs import WrittenFile, may_come_home
from slurm_ray_flow.core.quantities import format_memory

CHANGED = "it was changed here since the launch"
SAME = "it is here already"
TELL_SECONDS = 1.0


class Source(Protocol):
    """The source of the files."""

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        """Copy files of a folder on the cluster into one at home, by rsync."""


@dataclass
class BroughtFiles:
    """The result: the paths of the files that are at home now, and for others the reason by name."""

    paths: list[Path] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def bring_home(
    source: Source,
    folder: PurePosixPath,
    files: Sequence[WrittenFile],
    target: Path,
    keep_since: float,
) -> BroughtFiles:
    """Bring files home from a folder of a cluster.

    Args:
        source: the cluster.
        folder: the folder on the cluster.
        files: the files in it.
        target: the folder at home; made if it is missing.
        keep_since: files at home that were changed after this time, in seconds since 1970, are kept.

    Raises:
        SyncError: the folder can't be written, or rsync fails; files that had arrived are in their places.
        ConnectionFailed: the cluster does not answer.
    """
    brought = BroughtFiles()
    if not files:
        return brought
    try:
        target.mkdir(parents=True, exist_ok=True)
        obstacles = {file: _obstacle(target, file, keep_since) for file in files}
        allowed = [file for file in files if not obstacles[file]]
        with tempfile.TemporaryDirectory(prefix=".srf-", dir=target) as staging:
            try:
                if allowed:
                    with _publish_progress(Path(staging), allowed):
                        source.bring(folder, [file.path for file in allowed], Path(staging))
            finally:
                obstacles |= {file: _put_in_place(Path(staging), target, file, keep_since) for file in allowed}
    except OSError as problem:
        raise SyncError(
            f"the files of the run can't be written: {problem.strerror}",
            where=str(problem.filename or target),
            advice="see that it can be written and has room, or name another folder: `srf fetch RUN PATTERN --to`",
        ) from problem
    for file in files:
        if obstacles[file] in {"", SAME}:
            brought.paths.append(target / file.path)
        else:
            brought.left[file.path] = obstacles[file]
    return brought


def _obstacle(target: Path, file: WrittenFile, keep_since: float) -> str:
    """The reason that a file can't be put in its place; "" for none. No link is followed."""
    if not may_come_home(file.path):
        return "its name leads elsewhere"
    try:
        path, status = target, None
        for part in file.path.split("/"):
            if status is not None and not stat.S_ISDIR(status.st_mode):
                return "a folder on its way is a link or a file here"
            path = path / part
            status = path.lstat()
    except FileNotFoundError:
        return ""
    assert status is not None, "a path has a part"
    if not stat.S_ISREG(status.st_mode):
        return "there is a link or a folder of this name here"
    if (status.st_size, status.st_mtime_ns) == (file.size, file.changed_ns):
        return SAME
    return CHANGED if status.st_mtime > keep_since else ""


def _put_in_place(staging: Path, target: Path, file: WrittenFile, keep_since: float) -> str:
    """Put a file that has arrived in its place; gives the reason of a failure."""
    arrived = staging / file.path
    try:
        if not stat.S_ISREG((status := arrived.lstat()).st_mode):
            return "it is no plain file"
    except FileNotFoundError:
        return "it did not come"
    if status.st_mtime > time.time():  # the cluster's clock is ahead: here it would count as changed for long
        os.utime(arrived)
    if obstacle := _obstacle(target, file, keep_since):
        return obstacle
    (target / file.path).parent.mkdir(parents=True, exist_ok=True)
    arrived.replace(target / file.path)
    return ""


@contextlib.contextmanager
def _publish_progress(staging: Path, files: Sequence[WrittenFile]) -> Iterator[None]:
    """Publish from time to time the size of the files that have arrived."""
    publish_here = publisher()
    total, ended = format_memory(sum(file.size for file in files)), threading.Event()

    def watch() -> None:
        while not ended.wait(TELL_SECONDS):
            with contextlib.suppress(OSError):  # rsync has just renamed one
                size = sum(path.lstat().st_size for path in staging.rglob("*") if not path.is_dir())
                publish_here(Note(f"{format_memory(size)} of {total}"))

    thread = threading.Thread(target=watch, daemon=True, name="srf-outputs")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
