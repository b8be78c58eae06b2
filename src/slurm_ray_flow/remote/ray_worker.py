"""A worker of Ray: runs Ray's own program with the arguments given, see `ray_session.enter_before_tasks`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import runpy


def main() -> None:
    """Be a worker to the end of its job."""
    import ray
    from ray._private import function_manager

    from slurm_ray_flow.remote.ray_session import enter_before_tasks

    enter_before_tasks(function_manager.FunctionActorManager)
    sys.argv[0] = os.path.join(os.path.dirname(ray.__file__), "_private", "workers", "default_worker.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
