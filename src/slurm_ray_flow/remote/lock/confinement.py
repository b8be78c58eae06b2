"""Confinement of a run to its processors and its memory, by a control group where this user may make one.

Where there is none, the processors are kept by affinity, and memory by the head's own look at it (`calls.Call`) and,
without Ray, by a limit of the driver's data (RLIMIT_DATA). Ray reserves far more address space than it uses, and dies
of such limits.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from slurm_ray_flow.remote.scheduler.contexts import job_here

RAY_NEEDS, HEAD_NEEDS = 1 << 30, 128 << 20
"""Bytes for Ray's own processes and for the head's, beside the memory of the call."""
PREFIX = "srf-"
_V1_MEMORY = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


class ControlGroup(NamedTuple):
    """A control group of one run."""

    folder: str
    version: int
    limits: Tuple[str, ...]

    def join(self) -> bool:
        """Put this process, and all that it will start, into the group."""
        with contextlib.suppress(OSError):
            _write(self.folder, "cgroup.procs", str(os.getpid()))
            return True
        return False

    def kills(self) -> int:
        """The number of processes in the group that the kernel has ended for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError, ValueError):
            lines = _read(self.folder, name).splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        return 0

    def processes(self) -> List[int]:
        """The pids in the group."""
        with contextlib.suppress(OSError, ValueError):
            return [int(line) for line in _read(self.folder, "cgroup.procs").split()]
        return []

    def remove(self, seconds: float = 2.0) -> bool:
        """End the processes in the group, and remove it; gives whether it is gone."""
        deadline = time.monotonic() + seconds
        while os.path.isdir(self.folder):
            for pid in self.processes():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.rmdir(self.folder)
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def own_kills() -> Optional[int]:
    """The number of this run's processes that the kernel has ended for want of memory; None in a shared group."""
    of_job = job_here().control_group
    for version, folder in _own_folders():
        if os.path.basename(folder).startswith(PREFIX) or (of_job and of_job in folder):
            return ControlGroup(folder, version, ()).kills()
    return None


def make(run_id: str, memory: Optional[int], cpus: List[int], ray: bool, store: int = 0) -> Optional[ControlGroup]:
    """Make a control group for a run; None where that is not allowed.

    Args:
        run_id: names it.
        memory: bytes that the call was given; None for no limit, and then there is no group.
        cpus: its processors.
        ray: whether Ray runs in it.
        store: bytes of Ray's object store.
    """
    if memory is None:
        return None
    limit = memory + store + (RAY_NEEDS if ray else HEAD_NEEDS)
    for version, parent in _parents():
        _remove_old(version, parent)
        with contextlib.suppress(OSError):
            return _made(ControlGroup(os.path.join(parent, PREFIX + run_id), version, ("memory",)), limit, cpus)
    return None


def _made(group: ControlGroup, limit: int, cpus: List[int]) -> ControlGroup:
    os.mkdir(group.folder)
    try:
        if group.version == 2:
            _write(group.folder, "memory.max", str(limit))
            _try_write(group.folder, "memory.swap.max", "0")
            held = _try_write(group.folder, "cpuset.cpus", ",".join(map(str, cpus)))
            return group._replace(limits=("memory", "cpus")) if held else group
        _write(group.folder, _V1_MEMORY[0], str(limit))
        _try_write(group.folder, _V1_MEMORY[1], str(limit))
        return group
    except OSError:
        os.rmdir(group.folder)
        raise


def _parents() -> Iterator[Tuple[int, str]]:
    """The parents of a group with a memory limit: this process's groups, by both versions of the kernel's interface."""
    for version, folder in _own_folders():
        if version == 1 and os.access(folder, os.W_OK):
            yield version, folder
        if version == 2:
            yield from ((2, place) for place in (folder, os.path.dirname(folder)) if _shares_memory(place))


def _own_folders() -> Iterator[Tuple[int, str]]:
    """The group of this process that bounds memory, by both versions of the kernel's interface."""
    mounted = {kind: (root, place) for kind, root, place in _mounts()}
    for controllers, path in _own_groups():
        version = 2 if controllers == "" else 1
        root, top = mounted.get("" if version == 2 else "memory", ("", ""))
        if top and (version == 2 or "memory" in controllers.split(",")):
            inner = path[len(root) :] if root != "/" and (path + "/").startswith(root + "/") else path
            yield version, os.path.normpath(top + "/" + inner)


def _shares_memory(folder: str) -> bool:
    """Whether this user may make groups with a memory limit below this one.

    In version 2 a group that shares its memory out has no processes of its own, so that it is mostly the parent of
    ours: what a user was delegated (`user@1000.service` and below).
    """
    with contextlib.suppress(OSError):
        return os.access(folder, os.W_OK) and "memory" in _read(folder, "cgroup.subtree_control").split()
    return False


def _own_groups() -> List[Tuple[str, str]]:
    with contextlib.suppress(OSError):
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            fields = [line.rstrip("\n").split(":", 2) for line in file]
        return [(controllers, path) for _, controllers, path in fields]
    return []


def _mounts() -> Iterator[Tuple[str, str, str]]:
    """Of version 2 ("") and version 1's memory, the group that the mount begins at, and where it is mounted."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            root, folder = before.split()[3:5]
            if kind == "cgroup2":
                yield "", root, folder
            elif kind == "cgroup" and "memory" in options.strip().split(","):
                yield "memory", root, folder


def _remove_old(version: int, parent: str) -> None:
    """Remove the empty groups of ended runs."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(PREFIX) and not ControlGroup(os.path.join(parent, name), version, ()).processes():
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(parent, name))


def keep_to(cpus: List[int]) -> bool:
    """Keep this process, and all that it will start, to these processors."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, cpus)
        return True
    return False


def limit_data(pid: int, memory: int) -> bool:
    """Bound what one process may allocate, far enough above its memory for what it never touches."""
    bound = 2 * memory + RAY_NEEDS
    change: Optional[Callable[..., Any]] = getattr(resource, "prlimit", None)
    if change is None:
        return False
    with contextlib.suppress(OSError, ValueError):
        change(pid, resource.RLIMIT_DATA, (bound, bound))
        return True
    return False


def enforced(
    group: Optional[ControlGroup], by_affinity: bool, memory: Optional[int], with_rlimit: bool
) -> Dict[str, str]:
    """The means by which each limit is kept, in words."""
    cpus = "cgroup" if group and "cpus" in group.limits else "affinity" if by_affinity else "nothing"
    if memory is None:
        return {"cpus": cpus}
    watch = "the head's watch and rlimit" if with_rlimit else "the head's watch"
    return {"cpus": cpus, "memory": "cgroup v{} and the head's watch".format(group.version) if group else watch}


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return file.read()


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="ascii") as file:
        file.write(text)


def _try_write(folder: str, name: str, text: str) -> bool:
    try:
        _write(folder, name, text)
    except OSError:
        return False
    return True
