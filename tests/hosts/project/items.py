"""What campaigns over several clusters run."""

import os
import time

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(ray="never", cpus_per_node=1)
def slow(number):
    time.sleep(0.05)
    return number, os.uname().nodename


@slurm_ray_flow(ray="never", cpus_per_node=1)
def quick(number):
    time.sleep(0.01)
    return number
