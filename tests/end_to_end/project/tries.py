"""Functions that fail at first, each for a cause of its own."""

import os
import signal
import time

from slurm_ray_flow import checkpoint, on_warning, slurm_ray_flow


def tries():
    """Which try this is, counted in a file that all tries of a run share."""
    path = checkpoint("tries")
    number = len(path.read_text()) + 1 if path.exists() else 1
    path.write_text("x" * number)
    print("try", number, flush=True)
    return number


@slurm_ray_flow(memory="150M", on_out_of_memory="times 3, at most 2 times")
def large():
    held = bytearray(os.urandom(1 << 20)) * 250
    time.sleep(3)  # until the head has looked
    return len(held) >> 20


@slurm_ray_flow(time_limit="10s", on_time_limit="add 40s, at most 1 time")
def slow():
    number = tries()
    if number == 1:
        time.sleep(60)
    return number


@slurm_ray_flow(retries=2, retry_on="ConnectionResetError")
def shaky(error, failing=2):
    number = tries()
    if number <= failing:
        raise error(f"try {number}")
    return number


@slurm_ray_flow(retries=1)
def killed_at_first():
    number = tries()
    if number == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return number


class TimeIsUp(Exception):
    pass


@slurm_ray_flow(time_limit="20s", warn_before="16s")
def saves_in_time():
    @on_warning
    def save(warning):
        raise TimeIsUp(warning.reason, warning.seconds_left)

    try:
        time.sleep(60)
    except TimeIsUp as error:
        return error.args


@slurm_ray_flow(memory="4G", cpus_per_node=2)
def idle(seconds):
    time.sleep(seconds)
    return seconds
