"""Confinement of a run to its processors and its memory, by a control group if this user may make one.

Otherwise affinity limits the processors. The head's measurements limit the memory (`calls.RunningCall.watch`), and,
without Ray, a limit of the driver's data (RLIMIT_DATA): Ray reserves far more address space than it uses, and such a
limit ends it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from slurm_ray_flow.remote.scheduler.contexts import job_here

RAY_MEMORY, HEAD_MEMORY = 1 << 30, 128 << 20
"""Bytes for Ray's own processes and for the head's, in addition to the memory of the call."""
PREFIX = "srf-"
_V1_MEMORY = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


class ControlGroup(NamedTuple):
    """A control group of one run."""

    folder: str
    version: int
    limits: Tuple[str, ...]

    def join(self) -> bool:
        """Put this process and its future descendants into the group."""
        with contextlib.suppress(OSError):
            _write(self.folder, "cgroup.procs", str(os.getpid()))
            return True
        return False

    def kills(self) -> int:
        """The number of processes in the group that the kernel has killed for want of memory."""
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
        """Kill the processes in the group, and remove it; returns whether it is gone."""
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
    """The number of this run's processes that the kernel has killed for want of memory; None in a shared group."""
    job_group = job_here().control_group
    for version, folder in _own_folders():
        if os.path.basename(folder).startswith(PREFIX) or (job_group and job_group in folder):
            return ControlGroup(folder, version, ()).kills()
    return None


def make(run_id: str, memory: Optional[int], cpus: List[int], ray: bool, store: int = 0) -> Optional[ControlGroup]:
    """Make a control group for a run; None if that is not allowed.

    Args:
        run_id: the run.
        memory: the bytes of the call; None for no limit, and then there is no group.
        cpus: the run's processors.
        ray: whether the run has Ray.
        store: the bytes of Ray's object store.
    """
    if memory is None:
        return None
    limit = memory + store + (RAY_MEMORY if ray else HEAD_MEMORY)
    for version, parent in _parents():
        _remove_empty_groups(version, parent)
        with contextlib.suppress(OSError):
            return _create(ControlGroup(os.path.join(parent, PREFIX + run_id), version, ("memory",)), limit, cpus)
    return None


def _create(group: ControlGroup, limit: int, cpus: List[int]) -> ControlGroup:
    os.mkdir(group.folder)
    try:
        if group.version == 2:
            _write(group.folder, "memory.max", str(limit))
            _try_write(group.folder, "memory.swap.max", "0")
            cpus_limited = _try_write(group.folder, "cpuset.cpus", ",".join(map(str, cpus)))
            return group._replace(limits=("memory", "cpus")) if cpus_limited else group
        _write(group.folder, _V1_MEMORY[0], str(limit))
        _try_write(group.folder, _V1_MEMORY[1], str(limit))
        return group
    except OSError:
        os.rmdir(group.folder)
        raise


def _parents() -> Iterator[Tuple[int, str]]:
    """Possible parents of a group with a memory limit, with the version of the kernel's interface."""
    for version, folder in _own_folders():
        if version == 1 and os.access(folder, os.W_OK):
            yield version, folder
        if version == 2:
            yield from ((2, candidate) for candidate in (folder, os.path.dirname(folder)) if _shares_memory(candidate))


def _own_folders() -> Iterator[Tuple[int, str]]:
    """The groups of this process that limit memory, with the version of the kernel's interface."""
    mounts = {kind: (root, folder) for kind, root, folder in _mounts()}
    for controllers, path in _own_groups():
        version = 2 if controllers == "" else 1
        root, mount_point = mounts.get("" if version == 2 else "memory", ("", ""))
        if mount_point and (version == 2 or "memory" in controllers.split(",")):
            path_in_mount = path[len(root) :] if root != "/" and (path + "/").startswith(root + "/") else path
            yield version, os.path.normpath(mount_point + "/" + path_in_mount)


def _shares_memory(folder: str) -> bool:
    """Whether this user may make groups with a memory limit below this one.

    In version 2 such a group has no processes itself. It is mostly the parent of this process's group: one that is
    delegated to the user (`user@1000.service` and below).
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
    """The mounts of version 2 ("") and of version 1's memory: each with its root group and its folder."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            mount_fields, _, type_fields = line.partition(" - ")
            file_system, _, options = type_fields.split(" ", 2)
            root, folder = mount_fields.split()[3:5]
            if file_system == "cgroup2":
                yield "", root, folder
            elif file_system == "cgroup" and "memory" in options.strip().split(","):
                yield "memory", root, folder


def _remove_empty_groups(version: int, parent: str) -> None:
    """Remove the empty groups of ended runs."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(PREFIX) and not ControlGroup(os.path.join(parent, name), version, ()).processes():
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(parent, name))


def set_affinity(cpus: List[int]) -> bool:
    """Restrict this process and its future descendants to these processors."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, cpus)
        return True
    return False


def limit_data(pid: int, memory: int) -> bool:
    """Limit the data of a process, far above its memory: it may allocate more than it uses."""
    limit = 2 * memory + RAY_MEMORY
    prlimit: Optional[Callable[..., Any]] = getattr(resource, "prlimit", None)
    if prlimit is None:
        return False
    with contextlib.suppress(OSError, ValueError):
        prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
        return True
    return False


def enforced(
    group: Optional[ControlGroup], by_affinity: bool, memory: Optional[int], with_rlimit: bool
) -> Dict[str, str]:
    """The means by which each limit is enforced, for people."""
    cpus = "cgroup" if group and "cpus" in group.limits else "affinity" if by_affinity else "nothing"
    if memory is None:
        return {"cpus": cpus}
    without_group = "the head's watch and rlimit" if with_rlimit else "the head's watch"
    return {"cpus": cpus, "memory": "cgroup v{} and the head's watch".format(group.version) if group else without_group}


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
