"""The Prefect server that the first launch starts where none is configured, and its supervisor.

The supervisor and `srf status` import from here: nothing in this package imports Prefect before it is used.
"""

from __future__ import annotations

from slurm_ray_flow.blocks.server.address import ServerAddress, ServerState, server_alive
from slurm_ray_flow.blocks.server.client import client_settings, connect, connected
from slurm_ray_flow.blocks.server.start import ensure_server, stop_server

__all__ = [
    "ServerAddress",
    "ServerState",
    "client_settings",
    "connect",
    "connected",
    "ensure_server",
    "server_alive",
    "stop_server",
]
