"""The process that starts Ray on a host and stays its parent: `ray_node.py PARENT_PID -`, by the environment's Python.

The arguments of `ray` come from stdin, a list as JSON: Ray's import, which takes long, need not wait for them.
"""

from __future__ import annotations

import json
import os
import signal
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.dirname(_here)))] + [
        entry for entry in sys.path if entry != _here
    ]

from typing import Any, List

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.head import nursery
from slurm_ray_flow.remote.shared import limits, processes

DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""The variable with the seconds that Ray leaves to tasks and actors after SIGTERM, by default 30."""


def main(arguments: List[str]) -> None:
    """Run Ray's own command in this process. It ends in order, and Ray with it, when its parent dies."""
    processes.die_with_parent(int(arguments[0]), signal.SIGTERM)
    os.environ.setdefault(DRAIN_VARIABLE, "0")  # the head is gone then: nobody waits for them
    limits.restore_umask()  # Ray's workers run the user's code; Ray's own files lie in a private folder
    run_fork = nursery.begin(os.environ[nursery.SOCKET_VARIABLE])
    if run_fork:
        return run_fork()
    from ray.scripts import scripts

    from slurm_ray_flow.remote.driver.ray_session import keep_on_loopback

    line = sys.stdin.readline()
    if not line:  # the head or the worker has ended
        return None
    options: List[str] = json.loads(line)
    if "--node-ip-address=127.0.0.1" in options:
        keep_on_loopback()
    _use_our_worker()
    if "--include-dashboard=true" not in options:
        _prevent_dashboard()
    else:
        _set_dashboard_folder(os.path.dirname(next(text for text in options if text.startswith("--temp-dir="))[11:]))
    _prevent_client_server(scripts)
    sys.argv = ["ray", *options]
    scripts.cli()
    return None


def _prevent_client_server(scripts: Any) -> None:
    """Keep Ray from starting its server for clients on port 10001, as it does if grpc is installed."""
    if hasattr(scripts, "get_ray_client_dependency_error"):
        scripts.get_ray_client_dependency_error = lambda: ImportError("it is not wanted")


def _use_our_worker() -> None:
    """Have Ray start workers with `ray_worker.py`; they inherit this process's folder."""
    from ray._private.node import Node

    from slurm_ray_flow.remote.driver.ray_session import START_FOLDER_VARIABLE

    os.environ[START_FOLDER_VARIABLE] = os.getcwd()
    original = Node.__init__

    def initialize(self: Any, ray_params: Any, *rest: Any, **named: Any) -> None:
        ray_params.worker_path = path_of("head/ray_worker.py")
        original(self, ray_params, *rest, **named)

    Node.__init__ = initialize


def _prevent_dashboard() -> None:
    """Keep Ray from starting the dashboard's process, which takes a second even without a dashboard."""
    from ray._private.node import Node

    if hasattr(Node, "start_api_server"):
        Node.start_api_server = lambda *_, **__: None


def _set_dashboard_folder(folder: str) -> None:
    """Have the dashboard make its temporary folders in a folder that ends with the run."""
    from ray._private.node import Node

    original = getattr(Node, "start_api_server", None)
    if original is None:
        return

    def start_with_folder(*positional: Any, **named: Any) -> Any:
        variables = dict(os.environ)
        os.environ["TMPDIR"] = folder
        try:
            return original(*positional, **named)
        finally:
            os.environ.pop("TMPDIR")
            os.environ.update(variables)

    Node.start_api_server = start_with_folder


if __name__ == "__main__":
    main(sys.argv[1:])
