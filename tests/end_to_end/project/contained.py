"""Functions that run in a container."""

import os
import signal
import sys
import time

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow
def look(*names):
    return {name: os.environ.get(name) for name in names}


@slurm_ray_flow
def squares(count=20):
    import ray

    @ray.remote
    def square(number):
        return number * number, os.environ.get("APPTAINER_CONTAINER"), os.environ.get("SHOWN")

    found = ray.get([square.remote(number) for number in range(count)])
    return sum(value for value, _, _ in found), {place for _, place, _ in found}, {shown for _, _, shown in found}


@slurm_ray_flow
def wait(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


@slurm_ray_flow
def die():
    os.kill(os.getpid(), signal.SIGSEGV)


@slurm_ray_flow
def argument_lists():
    """What every process of this user shows to everybody."""
    shown = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                shown.append(file.read())
        except OSError:
            pass
    return b"\n".join(shown), sys.executable
