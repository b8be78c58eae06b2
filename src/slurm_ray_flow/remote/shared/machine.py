"""What a machine has: processors, memory, graphics cards, and the Python that answers."""

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
from slurm_ray_flow.remote.shared.processes import said_by

NVIDIA_SECONDS = 10.0
_CGROUPS = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 60
"""The old cgroups say some such number where they mean that there is no limit."""


def machine_facts() -> Dict[str, Any]:
    """What this machine lets one of its user's processes have.

    Returns:
        host; python, version ("3.11") and platform ("cp311-linux_x86_64") of the interpreter that answers; cpus, gpus
        and memory (bytes); libc ("glibc 2.36", or "" where it is none).
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
        busy: how many processes want a processor, on average over the last minute; cpus: how many there are.
    """
    return {"busy": os.getloadavg()[0], "cpus": cpus()}


def platform_tag(version: str, implementation: str, system: str) -> str:
    """What binary packages depend on: "cp311-linux_x86_64"."""
    tag = system.replace("-", "_").replace(".", "_")
    return "cp{}-{}".format(version.replace(".", ""), tag) if implementation == "CPython" else tag


def cpus() -> int:
    """Processors that the kernel lets this process use: its affinity, and its cgroup's share."""
    shares = [_share(folder) for folder in _own_cgroups("cpu")]
    return max(1, min([limits.processors(), *(int(share) for share in shares if share)]))


def memory() -> int:
    """Bytes of the machine, or of the smallest cgroup that this process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory.limit_in_bytes")
    found = [_number(os.path.join(folder, name)) for folder in _own_cgroups("memory") for name in names]
    return min([total, *(limit for limit in found if 0 < limit < _NO_LIMIT)])


def gpus() -> int:
    """NVIDIA's graphics cards, as the driver or its own tool counts them."""
    found = len(glob.glob("/proc/driver/nvidia/gpus/*"))
    return found or _named_by_tool()


def _named_by_tool() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    return len(re.findall(r"^GPU \d+:", said_by([program, "-L"], NVIDIA_SECONDS) or "", re.MULTILINE))


def _share(folder: str) -> float:
    """How many processors a cgroup may use; 0 where it says nothing."""
    quota, _, period = _text(os.path.join(folder, "cpu.max")).partition(" ")
    if not quota:
        quota = _text(os.path.join(folder, "cpu.cfs_quota_us"))
        period = _text(os.path.join(folder, "cpu.cfs_period_us"))
    try:
        # A share of half a processor is one that is waited for, not none.
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
