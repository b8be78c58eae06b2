"""How a run's own programs are started: with the environment's Python, or that of its container."""

from __future__ import annotations

import os
import sys
from typing import Any, Dict, List

from slurm_ray_flow.remote import container


def command(spec: Dict[str, Any]) -> List[str]:
    """What a program of ours and its arguments are appended to."""
    if spec.get("container"):
        return container.command(spec["container"], int(spec.get("gpus") or 0))
    return [str(spec.get("python") or sys.executable), *(["-I"] if spec.get("isolated") else [])]


def variables(spec: Dict[str, Any], environment: Dict[str, str]) -> Dict[str, str]:
    """The variables that it is started with, so that it has `environment`."""
    if spec.get("container"):
        return container.variables(environment, list(spec.get("environment_variables") or {}))
    return environment


def parent(spec: Dict[str, Any]) -> str:
    """The pid with which it dies, `processes.die_with_parent`: in a container a process of the runtime is between."""
    return "0" if spec.get("container") else str(os.getpid())
