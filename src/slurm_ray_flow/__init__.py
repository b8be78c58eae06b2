"""Run a Python function on a Slurm cluster, an SSH server or this machine, inside a temporary Ray cluster."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.prefect_blocks import LocalMachine, OarCluster, SlurmCluster, SshConnection, SshServer
    from slurm_ray_flow.core.errors import (
        Cancelled,
        ConnectionFailed,
        Crashed,
        DependencyError,
        EnvironmentFailed,
        GridError,
        GridTokenError,
        HostKeyFailed,
        InputFailed,
        LockFailed,
        LogInFailed,
        Lost,
        NodeFailed,
        NotAllowedError,
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
        UnknownCampaignError,
        UnknownRunError,
    )
    from slurm_ray_flow.core.grid.model import CampaignState
    from slurm_ray_flow.core.run import RunState
    from slurm_ray_flow.interface.campaign import Campaign
    from slurm_ray_flow.interface.command import Command
    from slurm_ray_flow.interface.decorator import slurm_ray_flow
    from slurm_ray_flow.interface.handle import Handle, attach
    from slurm_ray_flow.interface.map import Handles, as_completed
    from slurm_ray_flow.interface.session import on_the_server
    from slurm_ray_flow.interface.task_runner import ClusterTaskRunner
    from slurm_ray_flow.remote.driver.checkpoints import checkpoint
    from slurm_ray_flow.remote.driver.command import CommandFailed, CommandResult
    from slurm_ray_flow.remote.shared.end_warning import EndWarning, on_warning

# Prefect's client reports its use to its makers, and asks with three lines in the terminal; nobody asked for that.
os.environ.setdefault("DO_NOT_TRACK", "1")

__version__ = "0.1.0"

__all__ = [
    "Campaign",
    "CampaignState",
    "Cancelled",
    "ClusterTaskRunner",
    "Command",
    "CommandFailed",
    "CommandResult",
    "ConnectionFailed",
    "Crashed",
    "DependencyError",
    "EndWarning",
    "EnvironmentFailed",
    "GridError",
    "GridTokenError",
    "Handle",
    "Handles",
    "HostKeyFailed",
    "InputFailed",
    "LocalMachine",
    "LockFailed",
    "LogInFailed",
    "Lost",
    "NodeFailed",
    "NotAllowedError",
    "OarCluster",
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
    "SlurmCluster",
    "SlurmRayFlowError",
    "SshConnection",
    "SshServer",
    "SyncError",
    "TimeLimit",
    "UnknownCampaignError",
    "UnknownRunError",
    "as_completed",
    "attach",
    "checkpoint",
    "on_the_server",
    "on_warning",
    "slurm_ray_flow",
]

_HOMES = {
    "slurm_ray_flow": "slurm_ray_flow.interface.decorator",
    "Campaign": "slurm_ray_flow.interface.campaign",
    "CampaignState": "slurm_ray_flow.core.grid.model",
    "ClusterTaskRunner": "slurm_ray_flow.interface.task_runner",
    "Command": "slurm_ray_flow.interface.command",
    "CommandFailed": "slurm_ray_flow.remote.driver.command",
    "CommandResult": "slurm_ray_flow.remote.driver.command",
    "EndWarning": "slurm_ray_flow.remote.shared.end_warning",
    "Handle": "slurm_ray_flow.interface.handle",
    "Handles": "slurm_ray_flow.interface.map",
    "LocalMachine": "slurm_ray_flow.blocks.prefect_blocks",
    "OarCluster": "slurm_ray_flow.blocks.prefect_blocks",
    "RunState": "slurm_ray_flow.core.run",
    "SlurmCluster": "slurm_ray_flow.blocks.prefect_blocks",
    "SshConnection": "slurm_ray_flow.blocks.prefect_blocks",
    "SshServer": "slurm_ray_flow.blocks.prefect_blocks",
    "as_completed": "slurm_ray_flow.interface.map",
    "attach": "slurm_ray_flow.interface.handle",
    "checkpoint": "slurm_ray_flow.remote.driver.checkpoints",
    "on_the_server": "slurm_ray_flow.interface.session",
    "on_warning": "slurm_ray_flow.remote.shared.end_warning",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: `srf --help` needs no Prefect."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_imported(_HOMES.get(name, "slurm_ray_flow.core.errors")), name)
    globals()[name] = value
    return value


def _imported(module: str) -> Any:
    """Import without looking for garbage meanwhile: it takes a tenth of the time of Prefect's many modules."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    except Exception as error:
        if (cause := _shadow()) is None:
            raise
        raise ImportError(f"{cause}\n  ({type(error).__name__}: {error})") from None
    finally:
        if collects:
            gc.enable()


def _shadow() -> str | None:
    """The file of the user's that was taken for a package of those that are imported by now."""
    from slurm_ray_flow.core.project import shadows

    return next(shadows([name for name in list(sys.modules) if "." not in name]), None)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
