"""The resources of this machine: processors, memory and GPUs, and the Python that runs this."""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import socket
import sys
import sysconfig
from typing import Any, Dict, Iterator, List

from slurm_ray_flow.remote.shared import limits
from slurm_ray_flow.remote.shared.processes import output_of

NVIDIA_SMI_SECONDS = 10.0
_CGROUPS = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 60
"""From this number of bytes on, a limit of cgroups v1 means that there is none."""


def machine_facts() -> Dict[str, Any]:
    """The resources of this machine that a process of this user can have.

    Returns:
        host; python, version ("3.11") and platform ("cp311-linux_x86_64") of this interpreter; cpus, gpus and memory
        (bytes); libc ("glibc 2.36", or "" for an unknown one).
    """
    version = "{}.{}".format(*sys.version_info[:2])
    return {
        "host": socket.gethostname(),
        "python": sys.executable,
        "version": version,
        "platform": platform_tag(version, platform.python_implementation(), sysconfig.get_platform()),
        "cpus": cpus(),
        "gpus": gpus(),
        "memory": memory(),
        "libc": " ".join(platform.libc_ver()).strip(),
    }


def machine_load() -> Dict[str, Any]:
    """How busy this machine is.

    Returns:
        busy: the load average of the last minute; cpus: the number of processors.
    """
    return {"busy": os.getloadavg()[0], "cpus": cpus()}


def platform_tag(version: str, implementation: str, system: str) -> str:
    """The platform that binary packages are made for: "cp311-linux_x86_64"."""
    tag = system.replace("-", "_").replace(".", "_")
    return "cp{}-{}".format(version.replace(".", ""), tag) if implementation == "CPython" else tag


def cpus() -> int:
    """The number of processors that this process may use, by its affinity and the quotas of its cgroups."""
    quotas = [_cpu_quota(folder) for folder in _own_cgroups("cpu")]
    return max(1, min([limits.processors(), *(int(quota) for quota in quotas if quota)]))


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the smallest limit of its cgroups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory.limit_in_bytes")
    limits_found = [_number(os.path.join(folder, name)) for folder in _own_cgroups("memory") for name in names]
    return min([total, *(limit for limit in limits_found if 0 < limit < _NO_LIMIT)])


def gpus() -> int:
    """The number of NVIDIA GPUs, by the driver or by nvidia-smi."""
    count = len(glob.glob("/proc/driver/nvidia/gpus/*"))
    return count or _gpus_by_nvidia_smi()


def _gpus_by_nvidia_smi() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    return len(re.findall(r"^GPU \d+:", output_of([program, "-L"], NVIDIA_SMI_SECONDS) or "", re.MULTILINE))


def _cpu_quota(folder: str) -> float:
    """The number of processors that a cgroup may use; 0 for no limit."""
    quota, _, period = _text(os.path.join(folder, "cpu.max")).partition(" ")
    if not quota:
        quota = _text(os.path.join(folder, "cpu.cfs_quota_us"))
        period = _text(os.path.join(folder, "cpu.cfs_period_us"))
    try:
        # Half a processor counts as one.
        return max(1.0, float(quota) / float(period)) if float(quota) > 0 else 0
    except (ValueError, ZeroDivisionError):
        return 0


def _own_cgroups(controller: str) -> Iterator[str]:
    """The folders of the cgroups that this process is in, from the innermost to the root."""
    for line in _text("/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        top = _CGROUPS if number == "0" else os.path.join(_CGROUPS, controllers)
        parts: List[str] = [part for part in path.split("/") if part]
        for length in range(len(parts), -1, -1):
            yield os.path.join(top, *parts[:length])


def _number(path: str) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


OPERATIONS: Dict[str, Any] = {"machines.facts": machine_facts, "machines.load": machine_load}
