"""What campaigns over several clusters run."""

import os
import signal
import time

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(ray="never", cpus_per_node=1)
def slow(number):
    time.sleep(0.05)
    return number, os.uname().nodename


@slurm_ray_flow(ray="never", cpus_per_node=1)
def quick(number):
    time.sleep(0.01)
    return number


@slurm_ray_flow(ray="never", cpus_per_node=1, memory="300M", time_limit="40s")
def bad(number, last):
    """Nearly as `quick`, but every hundredth item fails in one of the ways that there are, and the last one hangs."""
    time.sleep(0.01)
    kind = number // 100 % 6 if number % 100 == 50 else None
    if kind == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == 1:
        leak = []
        while True:
            leak.append(bytearray(10 << 20))
    elif kind == 2:
        return (one for one in "this can't be pickled")
    elif kind == 3:
        for line in range(1_000_000 if number < 600 else 1000):
            print(line)
    elif kind == 4:
        raise ValueError(number)
    if number == last:
        time.sleep(1e6)
    return number
