"""A client that submits a run when it is told to: `submits.py CLUSTER RUN_ID`."""

import sys

from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.core.run import RunPaths

SPEC = {"nodes": 1, "cpus": 1, "gpus": 0, "memory": None, "time_limit": 60.0, "scheduler": {"name": "same"}}

with connected(ensure_server(lambda _: None)):
    cluster = find_cluster(sys.argv[1])
paths = RunPaths(cluster.root_folder, sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
cluster.submit(paths, SPEC)
print("submitted", flush=True)
