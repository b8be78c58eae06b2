"""Functions as a user writes them. The tests of launches run them on a host."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import given

from slurm_ray_flow import slurm_ray_flow

CLUSTER = "desi-launches"


@slurm_ray_flow(cluster=CLUSTER)
def note(folder: str, word: str = "noted") -> str:
    """Leaves a line in a folder there for each time that it runs."""
    with open(Path(folder, "starts"), "a") as file:
        file.write(f"{word}\n")
    print("says", word, flush=True)
    return given.decorated(word)


@slurm_ray_flow(cluster=CLUSTER)
def wait(folder: str, background: str = "") -> int:
    """Says that it runs, and goes on until it is told to end; may leave a process in the background."""
    with open(Path(folder, "starts"), "a") as file:
        file.write(f"{os.getpid()}\n")
    if background:
        subprocess.Popen(["sleep", background], start_new_session=True)
    print("waits", flush=True)
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    print("gone on", flush=True)
    return 42


@slurm_ray_flow(cluster=CLUSTER)
def give_back(value):
    return value


@slurm_ray_flow(cluster=CLUSTER)
async def later(number):
    return number + 1


@slurm_ray_flow(cluster=CLUSTER)
def fail():
    raise given.GivenError(7)


@slurm_ray_flow(cluster=CLUSTER, time_limit=2)
def too_long():
    time.sleep(60)


@slurm_ray_flow(cluster=CLUSTER, memory="200M")
def eat():
    held = []
    while True:
        held.append(bytearray(10_000_000))


@slurm_ray_flow(cluster=CLUSTER, cpus_per_node=1)
def processors():
    return len(os.sched_getaffinity(0))


@slurm_ray_flow(cluster=CLUSTER, retries=1)
def die_once(folder: str) -> str:
    """Kills its head the first time, both of its processes, and with them itself."""
    starts = Path(folder, "starts")
    with open(starts, "a") as file:
        file.write("started\n")
    if starts.read_text().count("started") == 1:
        inner = os.getppid()
        keeper = int(Path(f"/proc/{inner}/stat").read_text().rsplit(")", 1)[1].split()[1])
        for pid in (inner, keeper):
            os.kill(pid, signal.SIGKILL)
        time.sleep(60)
    return "again"


if __name__ == "__main__":
    if sys.argv[1] == "submit":
        print(wait.with_options(cluster=(sys.argv[3:] or [CLUSTER])[0]).submit(sys.argv[2]).run_id, flush=True)
    elif sys.argv[1] == "twice":
        noted = note.with_options(cluster=(sys.argv[3:] or [CLUSTER])[0])
        print([noted(sys.argv[2], word) for word in ("one", "two")], flush=True)
    else:
        folder, background, cluster = sys.argv[2:]
        print("value", wait.with_options(cluster=cluster)(folder, background), flush=True)
