"""Functions that end in ways of their own."""

import os
import time
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow

CLUSTER = "pretend-launches"


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, memory="300M")
def takes_all_at_once():
    return len(b"x" * (3 << 30))


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, time_limit="1m")
def sleeps():
    time.sleep(600)


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1)
def says_when(folder: str) -> str:
    """When it began, and how often it has begun so far."""
    with open(Path(folder, "starts"), "a") as file:
        file.write("started\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return Path(folder, "starts").read_text()


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, memory="2000M")
def large(size: int) -> bytes:
    return os.urandom(size)


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, memory="300M")
def loses_a_child() -> int:
    """Goes on without a process that takes too much at once, and returns how that ended."""
    child = os.fork()
    if child == 0:
        os._exit(len(b"x" * (3 << 30)) & 1)
    return os.waitpid(child, 0)[1]
