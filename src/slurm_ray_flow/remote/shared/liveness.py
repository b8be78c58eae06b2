"""Whether what an earlier process began still runs, and what processes of this user work with."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.protocol import find_event

SILENT_ELSEWHERE = 90 * 86400.0
"""A head that can't be seen from here, on another machine that shares this root, is gone after so long a silence."""


def head_alive(events: List[Dict[str, Any]], silent: float) -> bool:
    """Whether the head that wrote these events lives.

    Args:
        events: of the allocation's own run.
        silent: seconds since it last wrote something.
    """
    allocated = find_event(events, "allocated")
    if allocated is None or find_event(events, "released"):
        return False
    return alive_or_unknown(allocated, silent)


def alive_or_unknown(noted: Dict[str, Any], silent: float) -> bool:
    """Whether a process may live that noted what it is: one that can't be seen does, until it was silent for long."""
    alive = noted_alive(noted)
    return silent < SILENT_ELSEWHERE if alive is None else alive


def noted_alive(noted: Dict[str, Any]) -> Optional[bool]:
    """Whether the process still runs that noted what it is (`processes.this`); None where it is `elsewhere`.

    Where the system told it only its pid, whoever has that pid now counts.
    """
    here = processes.this()
    if elsewhere(noted, here):
        return None
    if noted.get("boot_id") != here["boot_id"]:
        return False  # this host was started again
    if noted.get("started") is None:
        return processes.is_alive(noted.get("pid", 0))
    return bool(processes.started(noted.get("pid", 0)) == noted["started"])


def elsewhere(noted: Dict[str, Any], here: Dict[str, Any]) -> bool:
    """Whether a process is another host's, or of another namespace of processes: then it can't be seen from here.

    What says nothing of its host or its namespace is taken for this one's.
    """
    if noted.get("boot_id") != here["boot_id"]:
        return bool(noted.get("host", here["host"]) != here["host"])
    return bool(noted.get("namespace")) and here["namespace"] not in ("", noted["namespace"])


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
