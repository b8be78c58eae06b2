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


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=1, memory="1500M")
def eats(here: bool):
    """A task takes more than there is, on the function's own node or on the other one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    [node] = [node["NodeID"] for node in ray.nodes() if (node["NodeID"] == own) is here]

    @ray.remote(num_cpus=0.1, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    def eat():
        return len(b"x" * (3 << 30))

    return ray.get(eat.remote())


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1, memory="150M")
def too_small_for_ray():
    import ray

    return ray.is_initialized()
