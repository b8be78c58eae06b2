"""What killed programs of ours have left on a node: whoever comes next removes it, since no clean-up gets there.

A node that was cut off, and counts as down, has all processes of its jobs killed at once when it is back.
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
"""The file in such a folder that says which process it belongs to."""


def note_owner(folder: str) -> None:
    """Say that a folder belongs to this process."""
    with open(os.path.join(folder, OWNER), "w", encoding="ascii") as file:
        json.dump(processes.this(), file)


def remove_remains(base: str, prefix: str) -> None:
    """Remove the folders of this user whose process is certain to be dead.

    It is where it ran under this kernel and in this namespace of processes: one in a container, or on another host that
    sees the same folder, can't be looked for from here.

    Args:
        base: the folder that they lie in.
        prefix: what their names begin with.
    """
    with contextlib.suppress(OSError):
        for name, status in tree.entries(base, "").items():
            if name.startswith(prefix) and tree.is_folder(status) and status.st_uid == os.geteuid():
                with contextlib.suppress(OSError, tree.NotOurs, RecursionError):
                    if _is_dead(tree.read(base, name, OWNER)):
                        tree.remove(base, tree.set_aside(base, name))


def _is_dead(noted: bytes) -> bool:
    try:
        owner: Dict[str, Any] = parse_json(noted)
        this = processes.this()
        here = owner["boot_id"] == this["boot_id"] and owner["namespace"] == this["namespace"] != ""
        return here and owner["started"] is not None and not noted_alive(owner)
    except (ValueError, TypeError, KeyError, AttributeError):
        return False  # it is just being written, or is an older one
