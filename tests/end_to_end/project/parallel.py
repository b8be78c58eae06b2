"""Functions that use Ray, in a module of their own: whoever imports it gets a Ray cluster."""

import time
from pathlib import Path

import helpers

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(cpus_per_node=2)
def squares(count):
    import ray

    square = ray.remote(lambda number: helpers.triple(number) ** 2)
    return sum(ray.get([square.remote(number) for number in range(count)]))


@slurm_ray_flow(cpus_per_node=1, keep_warm="60s")
def warm(number):
    import ray

    return ray.get(ray.remote(helpers.triple).remote(number)), ray.get_runtime_context().gcs_address


@slurm_ray_flow(cpus_per_node=1, keep_warm="60s")
def warm_and_slow(mark, release):
    """Says that it runs, and goes on until it is told to end, or five minutes have passed."""
    import ray

    Path(mark).touch()
    deadline = time.monotonic() + 300
    while not Path(release).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return ray.get_runtime_context().gcs_address
