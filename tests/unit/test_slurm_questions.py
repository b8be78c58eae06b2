"""How many questions a scheduler is asked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from slurm_ray_flow.blocks.slurm.queue import Queue


class FakeMachine:
    """A login node that takes its time to answer a question."""

    label, root_folder = "fake", PurePosixPath("/root")

    def __init__(self):
        self.asked = 0
        self.go = threading.Event()

    def ask(self, operation, **arguments):
        assert operation == "slurm.query"
        self.asked += 1
        assert self.go.wait(10)
        return {"text": "", "error": "", "time": time.time()}


def test_who_must_know_at_the_same_time_shares_an_answer_that_is_newer_than_the_question():
    machine = FakeMachine()
    queue = Queue(machine, "alice")  # type: ignore[arg-type]
    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(queue.fresh, str(number)) for number in range(20)]
        machine.go.set()
        assert [one.result(10) for one in found] == [None] * 20
    assert machine.asked <= 3
    queue.fresh("later")
    assert machine.asked <= 4
