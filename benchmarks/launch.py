"""What a launch costs on this machine, beside a flow of empty tasks and beside Ray alone.

    python -m benchmarks.launch

All figures come from one run: the base is measured between the others. Medians of several calls; seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.home import own_home

CALLS = 5
HERE = Path(__file__).parent
BARE_RAY = """
import ray
ray.init(logging_level="error")
print(ray.get(ray.remote(lambda n: n + 1).remote(1)))
"""


def seconds_of(action: Callable[[], object], times: int = CALLS, pause: float = 0.0) -> float:
    """The median time of an action, with a pause before each."""
    taken = []
    for _ in range(times):
        time.sleep(pause)
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def base() -> Callable[[], object]:
    """A Prefect flow of seven empty tasks, its heartbeat off, on the server that the launches use."""
    from prefect import flow, task

    from slurm_ray_flow.interface import session

    @task
    def empty() -> None: ...

    @flow(name="seven-empty-tasks")
    def seven() -> None:
        for _ in range(7):
            empty()

    def call() -> None:
        with session.launching(session.Launching()):
            seven()

    return call


def bare_ray() -> None:
    """A script that does ray.init() and one task."""
    subprocess.run([sys.executable, "-c", BARE_RAY], check=True, capture_output=True)


def show(what: str, seconds: float, peer: float, limit: float, ratio: bool) -> bool:
    """Print a line of the table; gives whether it is within its limit."""
    value = seconds / peer if ratio else seconds - peer
    good = value <= limit
    unit = "times" if ratio else "s more than"
    verdict = "ok" if good else "OVER"
    print(f"{what:<44} {seconds:7.2f} s   peer {peer:6.2f} s   {value:5.2f} {unit} (limit {limit})  {verdict}")
    return good


def main() -> bool:
    """Measure and print; gives whether all are within their limits."""
    from benchmarks import functions

    call_base = base()
    call_base()
    functions.plus_one(1)
    base_seconds = seconds_of(call_base)
    good = show(
        "trivial function, no Ray, second call", seconds_of(lambda: functions.plus_one(1)), base_seconds, 0.6, False
    )

    functions.plus_one_ray(1)
    bare = seconds_of(bare_ray, 3)
    ray = seconds_of(lambda: functions.plus_one_ray(1), 3)
    base_seconds = seconds_of(call_base)
    good &= show("trivial Ray function, second call, less base", ray - base_seconds, bare, 1.2, True)

    functions.plus_one_warm(1)
    warm = partial(functions.plus_one_warm, 1)
    good &= show("warm, 3 s after the call before", seconds_of(warm, pause=3), base_seconds, 0.5, False)
    time.sleep(3)
    good &= show("warm, another process", _other_process(), base_seconds, 0.5, False)
    show("warm, straight after the call before (told)", seconds_of(warm), base_seconds, 0.5, False)
    return good


def _other_process() -> float:
    code = (
        "import time; from benchmarks import functions, launch; call = launch.base(); call(); call()\n"
        "began = time.perf_counter(); functions.plus_one_warm(1); print(time.perf_counter() - began)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=HERE.parent)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    with own_home():
        sys.exit(not main())
