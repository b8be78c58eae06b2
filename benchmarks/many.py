"""What twenty trivial calls cost by `map`, beside the same calls one after the other.

    python -m benchmarks.many

Both are measured in one process, one after the other, on one server. Seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from benchmarks.home import own_home
from benchmarks.launch import show

CALLS = 20


def seconds_of(action: Callable[[], object]) -> float:
    """How long one action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> bool:
    """Measure and print; gives whether all are within their limits."""
    from benchmarks import functions

    functions.plus_one(1)
    one_by_one = seconds_of(lambda: [functions.plus_one(number) for number in range(CALLS)])
    mapped = seconds_of(lambda: functions.plus_one.map(range(CALLS), max_parallel=8).results())
    good = show(f"{CALLS} trivial calls by map, 8 at a time", mapped, one_by_one, 1.1, True)
    waiting = seconds_of(lambda: functions.wait_a_second.map(range(CALLS), max_parallel=8).results())
    return good & show(f"{CALLS} calls that wait a second, 8 at a time", waiting, one_by_one + CALLS, 0.6, True)


if __name__ == "__main__":
    with own_home():
        sys.exit(not main())
