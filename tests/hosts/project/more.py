"""Functions that need another try, or are looked at, on Slurm."""

import os
import time
from pathlib import Path

from slurm_ray_flow import checkpoint, on_warning, slurm_ray_flow

CLUSTER = "pretend-launches"


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, memory="150M", on_out_of_memory="times 3, at most 2 times")
def large():
    held = bytearray(os.urandom(1 << 20)) * 250
    time.sleep(3)  # until somebody has looked
    return len(held) >> 20


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, partition="spare")
def saves_when_told(folder: str):
    """Its second try returns what the first one was told."""
    path = checkpoint("told")
    if path.exists():
        return path.read_text()
    on_warning(lambda warning: path.write_text(f"{warning.reason} {warning.seconds_left:.1f}"))
    Path(folder, "starts").write_text("started\n")
    while True:
        time.sleep(0.05)
