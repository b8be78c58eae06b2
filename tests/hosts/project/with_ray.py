"""A function that uses Ray, in a module of its own: whoever imports it gets a Ray cluster."""

import given
from held import CLUSTER

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, keep_warm="60s")
def warm(word):
    """What a task made of the word, and whose cluster it was."""
    import ray

    return ray.get(ray.remote(given.decorated).remote(word)), ray.get_runtime_context().gcs_address
