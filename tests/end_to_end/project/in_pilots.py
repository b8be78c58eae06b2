"""A user's module with Prefect's own tasks, whose flow runs them in pilots."""

import os
import time
from pathlib import Path

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import INPUTS

from slurm_ray_flow import ClusterTaskRunner

IN_PILOTS = ClusterTaskRunner(cpus_per_node=2, keep_warm="30s")
HOME = os.getpid()


@task
def add(*numbers):
    return sum(numbers)


@task(task_run_name="root of {number}")
def root(number: float) -> float:
    print("printed", number)
    get_run_logger().warning("logged %s\nas %s", number, runtime.task_run.name)
    if number < 0:
        raise ValueError(f"{number} has no root")
    return add(number, 0) ** 0.5  # a task inside a task is the plain function


@task
async def process(wait_for_nothing=None):
    return os.getpid()


@task(retries=2)
def third_time(folder):
    Path(folder, str(time.monotonic_ns())).touch()
    if len(list(Path(folder).iterdir())) < 3:
        raise OSError("not yet")
    return len(list(Path(folder).iterdir()))


@task(timeout_seconds=0.5)
def patient(folder):
    Path(folder, "begun").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)


@task(cache_policy=INPUTS, persist_result=True)
def stored(number, folder):
    Path(folder, str(time.monotonic_ns())).touch()
    return number


@task
def die():
    print("last words")
    os._exit(3)


@task
def values(count):
    yield from range(count)


@flow(task_runner=IN_PILOTS)
def call(function):
    """Run the rest of a test as a flow."""
    return function()


@flow(task_runner=ClusterTaskRunner(cpus_per_node=1, keep_warm="3s"))
def wait(folder):
    patient.with_options(timeout_seconds=None).submit(folder).result()
