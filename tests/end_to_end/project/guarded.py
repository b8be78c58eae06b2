"""Functions that look at what others on this machine could see of their run."""

import os
import time
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow
def hold(mark, release):
    """Wait until `release` exists, so that the run can be looked at; gives the secret, and what a package says."""
    import private_package

    print("held")
    Path(mark).write_text(str(os.getpid()))
    while not Path(release).exists():
        time.sleep(0.05)
    return os.environ["TOKEN"], private_package.VALUE


@slurm_ray_flow(ray="always", cpus_per_node=1)
def ray_folder(mark, release):
    """Wait likewise, beside a Ray cluster; tells where its token lies."""
    Path(mark).write_text(os.environ["RAY_AUTH_TOKEN_PATH"])
    while not Path(release).exists():
        time.sleep(0.05)


@slurm_ray_flow
def fail_with_secret():
    raise ValueError("no secret in here")
