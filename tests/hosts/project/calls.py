"""Functions that are called many times at once."""

import json
import os
import socket
import sys
import time
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow

CLUSTER = "pretend-launches"


class OddError(Exception):
    """One value is not liked."""


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=2, memory="200M")
def half(number, folder):
    """Half a number. None of the first four calls goes on before all four have begun, which takes both nodes."""
    Path(folder, str(number)).touch()
    while len(os.listdir(folder)) < 4:
        time.sleep(0.05)
    if number == 3:
        raise OddError(number)
    return number // 2, socket.gethostname(), os.environ["SLURM_JOB_ID"]


@slurm_ray_flow
def alone(number, folder):
    with open(Path(folder, "notes"), "a") as file:
        file.write("begin\n")
        file.flush()
        time.sleep(0.2)
        file.write("end\n")
    if number == 3:
        raise OddError(number)
    return number // 2


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, memory="200M")
def wait(number, folder):
    with open(Path(folder, "starts"), "a") as file:
        file.write(f"{number}\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    return number


if __name__ == "__main__":
    handles = wait.with_options(cluster=sys.argv[1]).map(range(6), max_parallel=4, folder=sys.argv[2])
    print(json.dumps(handles.map_id), flush=True)
    handles.results()
