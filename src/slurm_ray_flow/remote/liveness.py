"""Whether what an earlier process began still runs, and what processes of this user work with."""

from __future__ import annotations

import contextlib
import glob
import os
import socket
from typing import Any, Dict, List, Set

from slurm_ray_flow.remote import processes
from slurm_ray_flow.remote.protocol import find_event

SILENT_ELSEWHERE = 90 * 86400.0
"""A head on another machine that shares this root can't be asked; one that was silent for so long is gone."""


def head_alive(events: List[Dict[str, Any]], silent: float) -> bool:
    """Whether the head that wrote these events lives.

    Args:
        events: of the allocation's own run.
        silent: seconds since it last wrote something.
    """
    allocated = find_event(events, "allocated")
    if allocated is None or find_event(events, "released"):
        return False
    if allocated.get("host") not in (None, socket.gethostname()):
        return silent < SILENT_ELSEWHERE
    return noted_alive(allocated)


def noted_alive(noted: Dict[str, Any]) -> bool:
    """Whether the process of this machine still runs that noted its own `pid`, `started` and `boot_id`."""
    if noted.get("boot_id") != processes.boot_id():
        return False
    if noted.get("started") is None:
        return processes.is_alive(noted["pid"])
    return bool(processes.started(noted["pid"]) == noted["started"])


def texts(value: Any) -> List[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in texts(one)]


def in_use(roots: Set[str]) -> List[str]:
    """Command lines and working folders of this user's processes that name a root."""
    found: List[str] = []
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.geteuid():
                with open(path + "/cmdline", encoding="utf-8", errors="replace") as file:
                    found += [file.read(), os.readlink(path + "/cwd")]
    return [text for text in found if any(root in text for root in roots)]
