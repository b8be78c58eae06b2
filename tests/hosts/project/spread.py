"""Functions that use Ray on several nodes, in a module of their own: whoever imports it gets a Ray cluster."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow

CLUSTER = "pretend-launches"


def meet(folder: str, count: int) -> None:
    """Wait until so many runs are here."""
    Path(folder, f"here-{os.getpid()}-{socket.gethostname()}").touch()
    while sum(1 for _ in Path(folder).glob("here-*")) < count:
        time.sleep(0.05)


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=2, memory="1500M")
def squares(folder: str = "", runs: int = 1):
    """The sum of the squares of 0..99 by a hundred tasks, and where they ran."""
    import ray

    @ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")
    def square(number):
        time.sleep(0.2)
        return number * number, socket.gethostname()

    if folder:
        meet(folder, runs)
    done = ray.get([square.remote(number) for number in range(100)])
    nodes = {node["NodeManagerHostname"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return sum(value for value, _ in done), sorted({host for _, host in done}), nodes


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=1, memory="1500M")
def leave_behind(seconds: str):
    """Starts processes in the background, here and on the other node, and returns."""
    import ray

    def start():
        subprocess.Popen(["sleep", seconds], start_new_session=True)
        return socket.gethostname()

    started = ray.remote(num_cpus=0.1, scheduling_strategy="SPREAD")(start)
    start()
    hosts = set()
    while len(hosts) < 2:
        hosts |= set(ray.get([started.remote() for _ in range(4)]))
    return sorted(hosts)


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=2, gpus_per_node=1, memory="1500M")
def cards():
    """The cards that each node gives, as Ray and the tasks see them."""
    import ray

    @ray.remote(num_gpus=1, num_cpus=0.1)
    def mine():
        time.sleep(0.5)
        return socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"]

    return ray.cluster_resources(), sorted(ray.get([mine.remote() for _ in range(2)]))


def wait_for_a_word(folder: str):
    with open(Path(folder, "starts"), "a") as file:
        file.write(f"{socket.gethostname()}\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=1, memory="1500M", resubmit=0)
def goes_on(folder: str):
    """Waits for a word, then runs tasks on what is left of its nodes."""
    import ray

    wait_for_a_word(folder)
    same = ray.remote(num_cpus=0.1)(lambda number: number)
    return sum(ray.get([same.remote(number) for number in range(10)]))


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=1, memory="1500M", resubmit=0)
def wants_both(folder: str):
    """Waits for a word, then for a place on each of its nodes until it is told that this is enough."""
    from ray.util.placement_group import placement_group

    wait_for_a_word(folder)
    group = placement_group([{"CPU": 0.5}, {"CPU": 0.5}], strategy="STRICT_SPREAD")
    while not (placed := group.wait(1)) and not Path(folder, "enough").exists():
        pass
    return placed


@slurm_ray_flow(cluster=CLUSTER, nodes=2, cpus_per_node=1, gpus_per_node=1, memory="1500M")
def places():
    """The Python of this function; and where tasks run: host, container, and the user's own files that they see."""
    import ray

    @ray.remote(num_cpus=0.1, num_gpus=0.1, scheduling_strategy="SPREAD")
    def place():
        time.sleep(0.2)
        return socket.gethostname(), os.environ.get("APPTAINER_CONTAINER"), Path("~/own").expanduser().exists()

    return sys.executable, sorted(set(ray.get([place.remote() for _ in range(20)])))
