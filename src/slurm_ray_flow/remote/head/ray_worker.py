"""A worker of Ray: Ray's own program, after `ray_session.apply_setting_before_tasks`.

If there is a nursery, its fork is the worker, and the process that the raylet starts only waits for the fork.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import runpy
from typing import List

from slurm_ray_flow.remote.head import nursery
from slurm_ray_flow.remote.shared import limits


def main(arguments: List[str]) -> None:
    """Run a worker until the end of its job."""
    import ray
    from ray._private import function_manager

    from slurm_ray_flow.remote.driver.ray_session import apply_setting_before_tasks

    limits.be_first_to_go()
    apply_setting_before_tasks(function_manager.FunctionActorManager)
    sys.argv[:] = [os.path.join(os.path.dirname(ray.__file__), "_private", "workers", "default_worker.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def start(arguments: List[str]) -> None:
    """Have a fork of the nursery run the worker, and wait for its end; without a nursery, run it here."""
    forked = nursery.fork_process(
        "slurm_ray_flow.remote.head.ray_worker", [0, 1, 2], arguments=arguments, environment=dict(os.environ),
        folder=os.getcwd(), executable=sys.executable, orphan=False,
    )  # fmt: skip
    if forked is None:
        main(arguments)
    else:
        _, connection = forked
        connection.settimeout(None)
        connection.recv(1)


if __name__ == "__main__":
    start(sys.argv[1:])
