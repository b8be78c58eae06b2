"""A function that uses Ray on two nodes, and their processors."""

import time

from slurm_ray_flow import slurm_ray_flow

CLUSTER = "pretend-launches"


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=1, memory="1500M")
def busy_on_both(seconds: float):
    import ray

    @ray.remote(num_cpus=0.1, scheduling_strategy="SPREAD")
    def burn():
        end = time.process_time() + seconds / 2
        while time.process_time() < end:
            pass

    began = time.monotonic()
    ray.get([burn.remote() for _ in range(2)])
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
