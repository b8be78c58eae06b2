"""What a user's script does after the upgrade: gets at the runs of before, and launches where they ran."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from made import half
from prefect.flows import load_flow_from_entrypoint

from slurm_ray_flow import Handle, Handles


def attached(run_id):
    handle = Handle.attach(run_id)
    return [handle.result(120), handle.status().value, list(handle.logs())]


if __name__ == "__main__":
    runs, clusters, entrypoints = map(json.loads, sys.argv[1:])
    with ThreadPoolExecutor() as pool:
        launched = [pool.submit(half.with_options(cluster=name), 10) for name in clusters]
        found = {
            "map": Handles.attach(runs.pop("map")).results(120),
            "cached": half.with_options(cache="1d")(3),
            "runs": {name: attached(run_id) for name, run_id in runs.items()},
            "flows": [load_flow_from_entrypoint(entrypoint).name for entrypoint in entrypoints],
            "launched": [one.result() for one in launched],
        }
    print(json.dumps(found))
