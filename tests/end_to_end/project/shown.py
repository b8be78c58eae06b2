"""A function whose Ray cluster has a dashboard."""

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(dashboard=True, cpus_per_node=1, keep_warm="3m")
def seen():
    import ray

    return ray.cluster_resources()["CPU"]
