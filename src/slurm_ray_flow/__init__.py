"""Run a Python function on a Slurm cluster, an SSH server or this machine, inside a temporary Ray cluster."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.local_machine import LocalMachine
    from slurm_ray_flow.blocks.ssh.block import SshConnection
    from slurm_ray_flow.blocks.ssh_server import SshServer
    from slurm_ray_flow.core.errors import (
        Cancelled,
        ConnectionFailed,
        Crashed,
        DependencyError,
        EnvironmentFailed,
        HostKeyFailed,
        LockFailed,
        LogInFailed,
        Lost,
        NodeFailed,
        OptionError,
        OutOfMemory,
        PayloadError,
        Preempted,
        Rejected,
        ResultError,
        RunError,
        ScanError,
        ServerError,
        SlurmRayFlowError,
        SyncError,
        TimeLimit,
        UnknownRunError,
    )
    from slurm_ray_flow.core.run import RunState
    from slurm_ray_flow.interface.decorator import slurm_ray_flow
    from slurm_ray_flow.interface.handle import Handle

# Prefect's client reports its use to its makers, and asks with three lines in the terminal; nobody asked for that.
os.environ.setdefault("DO_NOT_TRACK", "1")

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "ConnectionFailed",
    "Crashed",
    "DependencyError",
    "EnvironmentFailed",
    "Handle",
    "HostKeyFailed",
    "LocalMachine",
    "LockFailed",
    "LogInFailed",
    "Lost",
    "NodeFailed",
    "OptionError",
    "OutOfMemory",
    "PayloadError",
    "Preempted",
    "Rejected",
    "ResultError",
    "RunError",
    "RunState",
    "ScanError",
    "ServerError",
    "SlurmRayFlowError",
    "SshConnection",
    "SshServer",
    "SyncError",
    "TimeLimit",
    "UnknownRunError",
    "slurm_ray_flow",
]

_HOMES = {
    "slurm_ray_flow": "slurm_ray_flow.interface.decorator",
    "Handle": "slurm_ray_flow.interface.handle",
    "LocalMachine": "slurm_ray_flow.blocks.local_machine",
    "RunState": "slurm_ray_flow.core.run",
    "SshConnection": "slurm_ray_flow.blocks.ssh.block",
    "SshServer": "slurm_ray_flow.blocks.ssh_server",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: `srf --help` needs no Prefect."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "slurm_ray_flow.core.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
