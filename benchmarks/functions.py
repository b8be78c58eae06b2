"""The functions that the benchmarks launch."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(ray="never")
def plus_one(number: int) -> int:
    return number + 1


@slurm_ray_flow(ray="never")
def wait_a_second(number: int) -> int:
    time.sleep(1.0)
    return number


@slurm_ray_flow(ray="never", cpus_per_node=2)
def end_of_a_second(number: int) -> float:  # noqa: ARG001 - the items differ by it alone
    time.sleep(1.0)
    return time.time()


def _task(number: int) -> int:
    return number + 1


@slurm_ray_flow(ray="always")
def plus_one_ray(number: int) -> int:
    import ray

    return int(ray.get(ray.remote(_task).remote(number)))


@slurm_ray_flow(ray="always", keep_warm="1m")
def plus_one_warm(number: int) -> int:
    import ray

    return int(ray.get(ray.remote(_task).remote(number)))


@slurm_ray_flow(ray="never")
def same(value: Any) -> Any:
    return value


@slurm_ray_flow(ray="never", cpus_per_node=2)
def hundred_bytes(number: int) -> bytes:
    return (b"%d " % number).ljust(100, b".")


@slurm_ray_flow(ray="never", cpus_per_node=2)
def run_command(number: int) -> int:
    return subprocess.run(["true", str(number)], check=True).returncode


@slurm_ray_flow(ray="never", cpus_per_node=2)
def sleep_a_second(number: int) -> int:
    time.sleep(1.0)
    return number
