"""Temporary folders on a node whose process was killed: the next process there removes them, as no clean-up reaches it.

A node that was down for the scheduler has all processes of its jobs killed at once when it is back.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Dict

from slurm_ray_flow.remote.shared import processes, tree
from slurm_ray_flow.remote.shared.liveness import noted_alive
from slurm_ray_flow.remote.shared.protocol import parse_json

OWNER = "owner"
"""The file in such a folder that names its process."""


def note_owner(folder: str) -> None:
    """Write a file that makes this process the owner of a folder."""
    with open(os.path.join(folder, OWNER), "w", encoding="ascii") as file:
        json.dump(processes.this(), file)


def remove_leftovers(base: str, prefix: str) -> None:
    """Remove this user's folders whose process is certainly dead.

    That is certain only for a process of this boot and this PID namespace; one in a container, or on another host that
    shares the folder, is invisible from here.

    Args:
        base: the folder with those folders.
        prefix: the start of their names.
    """
    with contextlib.suppress(OSError):
        for name, status in tree.entries(base, "").items():
            if name.startswith(prefix) and tree.is_folder(status) and status.st_uid == os.geteuid():
                with contextlib.suppress(OSError, tree.NotOurs, RecursionError):
                    if _is_dead(tree.read(base, name, OWNER)):
                        tree.remove(base, tree.set_aside(base, name))


def _is_dead(owner_note: bytes) -> bool:
    try:
        owner: Dict[str, Any] = parse_json(owner_note)
        this = processes.this()
        same_namespace = owner["boot_id"] == this["boot_id"] and owner["namespace"] == this["namespace"] != ""
        return same_namespace and owner["started"] is not None and not noted_alive(owner)
    except (ValueError, TypeError, KeyError, AttributeError):
        return False  # the file is being written, or has an older format
