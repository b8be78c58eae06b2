"""The process that starts Ray on a host and stays its parent: `ray_node.py PARENT_PID -`, by the environment's Python.

The arguments of `ray` come by stdin, a list of JSON: what takes long, Ray's import, need not wait for them.
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


def main(arguments: List[str]) -> None:
    """Run Ray's own command in this process; it ends in order, and Ray with it, when its parent dies."""
    processes.die_with_parent(int(arguments[0]), signal.SIGTERM)
    limits.restore_umask()  # Ray's workers run the user's code; Ray's own files lie in a private folder
    become = nursery.begin(os.environ[nursery.DOOR])
    if become:
        return become()
    from ray.scripts import scripts

    from slurm_ray_flow.remote.driver.ray_session import keep_on_loopback

    line = sys.stdin.readline()
    if not line:  # whoever was to tell has gone
        return None
    chosen: List[str] = json.loads(line)
    if "--node-ip-address=127.0.0.1" in chosen:
        keep_on_loopback()
    _with_our_worker()
    if "--include-dashboard=true" not in chosen:
        _without_dashboard()
    else:
        _dashboard_in(os.path.dirname(next(text for text in chosen if text.startswith("--temp-dir="))[11:]))
    _without_client_server(scripts)
    sys.argv = ["ray", *chosen]
    scripts.cli()
    return None


def _without_client_server(scripts: Any) -> None:
    """Keep Ray from port 10001 for its clients, which it takes where grpc is installed."""
    if hasattr(scripts, "get_ray_client_dependency_error"):
        scripts.get_ray_client_dependency_error = lambda: ImportError("it is not wanted")


def _with_our_worker() -> None:
    """Have Ray start workers by `ray_worker.py`; they inherit this process's folder."""
    from ray._private.node import Node

    from slurm_ray_flow.remote.driver.ray_session import STARTED_IN

    os.environ[STARTED_IN] = os.getcwd()
    begin = Node.__init__

    def with_our_worker(self: Any, ray_params: Any, *rest: Any, **named: Any) -> None:
        ray_params.worker_path = path_of("head/ray_worker.py")
        begin(self, ray_params, *rest, **named)

    Node.__init__ = with_our_worker


def _without_dashboard() -> None:
    """Keep Ray from starting the dashboard's process, which takes a second even without a dashboard."""
    from ray._private.node import Node

    if hasattr(Node, "start_api_server"):
        Node.start_api_server = lambda *_, **__: None


def _dashboard_in(folder: str) -> None:
    """Have the dashboard make its temporary folders in a folder that ends with the run."""
    from ray._private.node import Node

    start = getattr(Node, "start_api_server", None)
    if start is None:
        return

    def started(*given: Any, **named: Any) -> Any:
        before = dict(os.environ)
        os.environ["TMPDIR"] = folder
        try:
            return start(*given, **named)
        finally:
            os.environ.pop("TMPDIR")
            os.environ.update(before)

    Node.start_api_server = started


if __name__ == "__main__":
    main(sys.argv[1:])
