"""Whether processes that recorded their identity still run, and which paths this user's processes use."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.protocol import find_event

SILENT_ELSEWHERE = 90 * 86400.0
"""Seconds of silence after which a head on another machine that shares this root counts as dead."""


def head_alive(events: List[Dict[str, Any]], silent: float) -> bool:
    """Whether the head that wrote these events lives.

    Args:
        events: those of the allocation's own run.
        silent: seconds since the head last wrote something.
    """
    allocated = find_event(events, "allocated")
    if allocated is None or find_event(events, "released"):
        return False
    return alive_or_unknown(allocated, silent)


def alive_or_unknown(noted: Dict[str, Any], silent: float) -> bool:
    """Whether a process may live; an invisible one does until it has been silent for `SILENT_ELSEWHERE`.

    Args:
        noted: the identity that the process recorded, `processes.this`.
        silent: seconds since it last wrote something.
    """
    alive = noted_alive(noted)
    return silent < SILENT_ELSEWHERE if alive is None else alive


def noted_alive(noted: Dict[str, Any]) -> Optional[bool]:
    """Whether a process with this recorded identity (`processes.this`) still runs; None if it is `elsewhere`.

    If only its pid is recorded, any process that has the pid now counts.
    """
    here = processes.this()
    if elsewhere(noted, here):
        return None
    if noted.get("boot_id") != here["boot_id"]:
        return False  # this host was rebooted
    if noted.get("started") is None:
        return processes.is_alive(noted.get("pid", 0))
    return bool(processes.started(noted.get("pid", 0)) == noted["started"])


def elsewhere(noted: Dict[str, Any], here: Dict[str, Any]) -> bool:
    """Whether a process is on another host or in another PID namespace, and so invisible from here.

    An identity without a host or a namespace is taken for one of this host and namespace.
    """
    if noted.get("boot_id") != here["boot_id"]:
        return bool(noted.get("host", here["host"]) != here["host"])
    return bool(noted.get("namespace")) and here["namespace"] not in ("", noted["namespace"])


def strings_in(value: Any) -> List[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [string for item in values for string in strings_in(item)]


def in_use(roots: Set[str]) -> List[str]:
    """Command lines and working folders of this user's processes that contain the path of a root."""
    names: List[str] = []
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.geteuid():
                with open(path + "/cmdline", encoding="utf-8", errors="replace") as file:
                    names += [file.read(), os.readlink(path + "/cwd")]
    return [string for string in names if any(root in string for root in roots)]
