"""Each compute node's own part of the machine's control groups, where Slurm's limits are real."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from hosts.machine import until
from hosts.place import Place

CONTROLLERS = ("freezer", "memory")
"""What Slurm needs to see a job's processes and to limit their memory."""
OAR = ("cpuset", "cpu", "cpuacct", "devices", "freezer", "memory")
"""What OAR needs to keep a job's processes together."""


def hierarchies(controllers: Sequence[str] = CONTROLLERS) -> dict[str, Path]:
    """Where this machine has the controllers (cgroup v1); all of them, or nothing."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ")[:3]
        for name in controllers:
            if kind == "cgroup" and name in options.split(",") and os.access(before.split(" ")[4], os.W_OK):
                found.setdefault(name, Path(before.split(" ")[4]))
    return found if len(found) == len(controllers) else {}


def add(place: Place, host: str, controllers: Sequence[str] = CONTROLLERS) -> list[Path]:
    """Make a host's part, in each controller."""
    made = [folder / f"{place.prefix}-{host}" for folder in hierarchies(controllers).values()]
    for path in made:
        path.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # without them no process can enter
            if (path / name).exists():
                (path / name).write_text((path.parent / name).read_text())
    return made


def present(place: Place) -> list[Path]:
    """All parts of a lab's hosts."""
    folders = dict.fromkeys([*hierarchies().values(), *hierarchies(OAR).values()])
    return [path for folder in folders for path in folder.glob(f"{place.prefix}-*")]


def thaw(place: Place) -> None:
    """Let go on what Slurm has suspended: who stands still does not even hear that he is killed."""
    for path in present(place):
        for folder, _, names in os.walk(path):
            if "freezer.state" in names:
                with contextlib.suppress(OSError):
                    Path(folder, "freezer.state").write_text("THAWED")


def remove(place: Place) -> None:
    """Take a lab's parts away, when its processes have ended."""
    until(lambda: all(map(removed, present(place))), "the lab's control groups are gone")


def removed(path: Path) -> bool:
    """Whether a control group and those below it could be removed."""
    try:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
    except OSError:  # its last process is still on its way out
        return not path.exists()
    return True
