"""Functions whose launches are looked at in Prefect's UI."""

import logging
import sys
import time

import helpers

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(name="levelled", memory="500M", time_limit="5m")
def levels(rounds: int) -> int:
    print("plain")
    logging.warning("mind this")
    print("Traceback of mine", file=sys.stderr)
    for number in range(rounds):
        print(f"progress: {number * 100 // rounds} %", flush=True)
        time.sleep(0.5)
    return helpers.triple(1)


@slurm_ray_flow
def broken(word: str) -> None:
    raise ValueError(f"broken by {word}")
