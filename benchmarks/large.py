"""A 1 GiB array to a function on this machine and back, beside dill's own dump and load to disk.

python -m benchmarks.large
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.home import own_home

GIB = 1024**3


def dill_alone(array: object, folder: Path) -> float:
    """dill's dump and load of the array, in seconds."""
    import dill

    began = time.perf_counter()
    with open(folder / "array.dill", "wb") as stream:
        dill.dump(array, stream)
    with open(folder / "array.dill", "rb") as stream:
        dill.load(stream)
    (folder / "array.dill").unlink()
    return time.perf_counter() - began


def there_and_back(array: object) -> float:
    """A launch that returns its argument, in seconds."""
    from benchmarks import functions

    functions.plus_one(1)
    began = time.perf_counter()
    functions.same(array)
    return time.perf_counter() - began


def main() -> bool:
    """Measure and print; gives whether both are within their limits."""
    import numpy

    array = numpy.random.default_rng(0).random(GIB // 8)
    launched = there_and_back(array)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before dill's own copies count
    with tempfile.TemporaryDirectory(dir=os.environ["SRF_HOME"]) as folder:
        alone = dill_alone(array, Path(folder))
    times, arrays = launched / alone, peak / GIB
    print(f"1 GiB there and back: {launched:.2f} s, dill to disk {alone:.2f} s: {times:.2f} times (limit 3)")
    print(f"peak memory at home: {arrays:.2f} arrays (limit 2.5)")
    return times <= 3 and arrays <= 2.5


if __name__ == "__main__":
    with own_home():
        sys.exit(not main())
