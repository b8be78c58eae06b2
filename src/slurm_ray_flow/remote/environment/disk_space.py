"""Whether an environment has room on the disk, judged before it is built.

What a package takes is known where an environment there holds it, or where home has it installed; else it is taken for
a usual one. What an environment there holds in the very same version is in uv's cache and takes next to nothing again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from slurm_ray_flow.remote.shared.processes import said_by

USUAL = (5 << 20, 150)
"""Bytes and files of a package of which nothing is known."""
LINKED = (64 << 10, 12)
"""Bytes and folders of a package whose files are hard links."""
QUOTA_SECONDS = 5.0
_PLANNED = re.compile(r"^ \+ ([^\s=@]+)(?:==(\S+))?")


class DiskSpace(NamedTuple):
    """Bytes and files, needed or free. `of` says whose limit it is: the disk's, or the user's quota."""

    bytes: int
    files: int
    of: str = ""


def planned(lines: Iterable[str]) -> List[Sequence[str]]:
    """Name and version of what `uv pip install --dry-run` says that it would install."""
    found = (_PLANNED.match(line) for line in lines)
    return [(one[1].lower().replace("_", "-"), one[2] or "") for one in found if one]


def needed(packages: Iterable[Sequence[str]], sizes: Mapping[str, Sequence[int]], held: Mapping[str, str]) -> DiskSpace:
    """What packages take.

    Args:
        packages: name and version of each.
        sizes: bytes and files by name, where they are known.
        held: packages that lie on the same disk, by name and version ("numpy==2.0").
    """
    each = [LINKED if "==".join(one) in held else sizes.get(one[0], USUAL) for one in packages]
    return DiskSpace(sum(one[0] for one in each), sum(one[1] for one in each))


def free(folder: Path) -> List[DiskSpace]:
    """What is free where a folder lies: on the disk, and of the user's quota where there is one that answers."""
    disk = os.statvfs(folder)
    # Some file systems count no inodes and say that they have none.
    files = disk.f_favail if disk.f_files else 1 << 62
    found = [DiskSpace(disk.f_bavail * disk.f_frsize, files, "the disk")]
    quota = _quota(folder)
    return found + ([quota] if quota else [])


def shortage(need: DiskSpace, folder: Path) -> str:
    """What is missing, with both figures; "" where there is room."""
    for there in free(folder):
        if need.bytes > there.bytes:
            figures = "about {} are needed and {} are free".format(_readable(need.bytes), _readable(there.bytes))
            return "the environment has no room: {} on {}".format(figures, there.of)
        if need.files > there.files:
            figures = "about {} files are needed and {} more are allowed".format(need.files, there.files)
            return "the environment has no room: {} on {}".format(figures, there.of)
    return ""


def _readable(size: int) -> str:
    return "{:.1f} GiB".format(size / (1 << 30)) if size >= 1 << 30 else "{:.1f} MiB".format(size / (1 << 20))


def _quota(folder: Path) -> Optional[DiskSpace]:
    program = shutil.which("quota")
    if program is None:
        return None
    command = [program, "-w", "-p", "--hide-device", "-f", _mount_point(folder)]
    said = said_by(command, QUOTA_SECONDS)
    return None if said is None else read_quota(said)


def _mount_point(folder: Path) -> str:
    path = folder.absolute()
    while not os.path.ismount(path):
        path = path.parent
    return str(path)


def read_quota(text: str) -> Optional[DiskSpace]:
    """What is left of a quota: the line of numbers that `quota -w -p` prints; None where there is no limit."""
    for line in text.splitlines():
        fields: List[str] = re.findall(r"(?<!\S)\d+\*?(?!\S)", line)
        if len(fields) >= 7:
            used, soft, hard, _, files, soft_files, hard_files = (int(field.rstrip("*")) for field in fields[:7])
            limit, most = hard or soft, hard_files or soft_files
            blocks = max(0, limit - used) * 1024 if limit else 1 << 62
            return DiskSpace(blocks, max(0, most - files) if most else 1 << 62, "your quota")
    return None


def check(root: str) -> Dict[str, Any]:
    """What is free in a root folder."""
    return {room.of: {"bytes": room.bytes, "files": room.files} for room in free(Path(os.path.expanduser(root)))}


OPERATIONS: Dict[str, Any] = {"room.check": check}
