"""Functions as a user writes them. The end-to-end tests launch them."""

import os
import time
from pathlib import Path

import helpers

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow
def triple(number: int = 2) -> int:
    print("tripling", number)
    return helpers.triple(number)


@slurm_ray_flow
def give_back(value):
    return value


@slurm_ray_flow
def nothing():
    pass


@slurm_ray_flow
async def later(number):
    import asyncio

    await asyncio.sleep(0.01)
    return number + 1


@slurm_ray_flow
def fail(code):
    try:
        raise KeyError("inner")
    except KeyError as inner:
        raise helpers.HelperError(code, "outer") from inner


@slurm_ray_flow
def unpicklable():
    return {"model": (number for number in range(3))}


@slurm_ray_flow
def leave(code):
    print("leaving", flush=True)
    os._exit(code)


@slurm_ray_flow
def crash():
    import ctypes

    ctypes.string_at(0)


@slurm_ray_flow(memory="300M")
def eat():
    held = []
    while True:
        held.append(bytearray(20_000_000))


@slurm_ray_flow(time_limit=2)
def too_long():
    time.sleep(60)


@slurm_ray_flow
def chatter(lines):
    for number in range(lines):
        print("line", number)
    return lines


@slurm_ray_flow
def sleep(seconds, mark=None):
    print("asleep")
    if mark:
        Path(mark).write_text(str(os.getpid()))
    time.sleep(seconds)
    return seconds


@slurm_ray_flow(env_vars={"COLOUR": "red"})
def colour():
    return os.environ["COLOUR"]


@slurm_ray_flow(cache=True)
def moment(number):
    return time.time()


class Holder:
    def __init__(self, base):
        self.base = base

    @slurm_ray_flow
    def add(self, number):
        return self.base + number
