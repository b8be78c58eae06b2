"""Files of a run that are brought home: no name from a cluster leads out of the target folder.

They come to a private folder beside their places, and each is renamed from there when its way and its place are free.
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
        """Have rsync copy files of a folder into one at home."""


@dataclass
class BroughtFiles:
    """The result: the paths of the files that are at home now, and by name the reason that others are not."""

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
        folder: the folder there.
        files: which ones.
        target: the folder at home; made where it is missing.
        keep_since: what was changed in it after this, in seconds since 1970, stays.

    Raises:
        SyncError: the folder can't be written, or rsync fails; what had come by then is in its place.
        ConnectionFailed: the cluster does not answer.
    """
    brought = BroughtFiles()
    if not files:
        return brought
    try:
        target.mkdir(parents=True, exist_ok=True)
        why = {file: _obstacle(target, file, keep_since) for file in files}
        wanted = [file for file in files if not why[file]]
        with tempfile.TemporaryDirectory(prefix=".srf-", dir=target) as staging:
            try:
                if wanted:
                    with _progress(Path(staging), wanted):
                        source.bring(folder, [file.path for file in wanted], Path(staging))
            finally:
                why |= {file: _placed(Path(staging), target, file, keep_since) for file in wanted}
    except OSError as problem:
        raise SyncError(
            f"the files of the run can't be written: {problem.strerror}",
            where=str(problem.filename or target),
            advice="see that it can be written and has room, or name another folder: `srf fetch RUN PATTERN --to`",
        ) from problem
    for file in files:
        if why[file] in {"", SAME}:
            brought.paths.append(target / file.path)
        else:
            brought.left[file.path] = why[file]
    return brought


def _obstacle(target: Path, file: WrittenFile, keep_since: float) -> str:
    """The reason that a file can't be put in its place; "" for none. No link is followed."""
    if not may_come_home(file.path):
        return "its name leads elsewhere"
    try:
        way, here = target, None
        for part in file.path.split("/"):
            if here is not None and not stat.S_ISDIR(here.st_mode):
                return "a folder on its way is a link or a file here"
            way = way / part
            here = way.lstat()
    except FileNotFoundError:
        return ""
    assert here is not None, "a path has a part"
    if not stat.S_ISREG(here.st_mode):
        return "there is a link or a folder of this name here"
    if (here.st_size, here.st_mtime_ns) == (file.size, file.changed_ns):
        return SAME
    return CHANGED if here.st_mtime > keep_since else ""


def _placed(staging: Path, target: Path, file: WrittenFile, keep_since: float) -> str:
    """Put a file that has arrived in its place; gives the reason of a failure."""
    came = staging / file.path
    try:
        if not stat.S_ISREG((here := came.lstat()).st_mode):
            return "it is no plain file"
    except FileNotFoundError:
        return "it did not come"
    if here.st_mtime > time.time():  # the cluster's clock is ahead: here it would count as changed for long
        os.utime(came)
    if why := _obstacle(target, file, keep_since):
        return why
    (target / file.path).parent.mkdir(parents=True, exist_ok=True)
    came.replace(target / file.path)
    return ""


@contextlib.contextmanager
def _progress(staging: Path, files: Sequence[WrittenFile]) -> Iterator[None]:
    """Publish from time to time how much has come."""
    publish_here = publisher()
    total, over = format_memory(sum(file.size for file in files)), threading.Event()

    def watch() -> None:
        while not over.wait(TELL_SECONDS):
            with contextlib.suppress(OSError):  # rsync has just renamed one
                size = sum(path.lstat().st_size for path in staging.rglob("*") if not path.is_dir())
                publish_here(Note(f"{format_memory(size)} of {total}"))

    thread = threading.Thread(target=watch, daemon=True, name="srf-outputs")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
