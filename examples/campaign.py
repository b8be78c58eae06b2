"""What the deployment `campaign` of prefect.yaml runs until you write a function of your own there."""

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow
def simulate(seed: int) -> float:
    """A random walk of ten thousand steps: how far it gets."""
    import random

    walk = random.Random(seed)  # noqa: S311 - no secret
    return abs(sum(walk.choice((-1, 1)) for _ in range(10_000))) / 100
