"""Launches at the same moment, from two processes and their threads: each gets its own."""

import json

import pytest

pytestmark = pytest.mark.server

HAMMER = """
import json, sys, threading
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow
def echo(owner, number, data):
    return owner, number, len(data), data[:1], data[-1:]

if __name__ == "__main__":
    owner, found = sys.argv[1], {}

    def call(number):
        data = bytes([number]) * (10 ** number + int(owner))
        found[number] = echo(owner, number, data) == (owner, number, len(data), data[:1], data[-1:])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(found))
"""
WARM = """
import json, sys
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(cpus_per_node=1, keep_warm="3s")
def square(number):
    import ray
    return ray.get(ray.remote(lambda: number ** 2).remote())

if __name__ == "__main__":
    first = int(sys.argv[1])
    print(json.dumps([square(number) for number in (first, first + 1)]))
"""


def both(script, text):
    """What two processes of the same script print, which run at once."""
    processes = [script(text, owner, wait=False) for owner in (10, 20)]
    ended = [process.communicate(timeout=180) for process in processes]
    assert all(out.strip() for out, _ in ended), ended
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_two_processes_of_four_threads(script):
    assert both(script, HAMMER) == [{str(number): True for number in range(1, 5)}] * 2


@pytest.mark.ray
def test_two_processes_that_want_one_warm_cluster(script):
    assert both(script, WARM) == [[100, 121], [400, 441]]
