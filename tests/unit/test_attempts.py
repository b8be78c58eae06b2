"""Each try of a run has a folder of its own, whoever starts it again."""

import uuid

from slurm_ray_flow import LocalMachine
from slurm_ray_flow.tasks.run import Run


def test_no_two_tries_share_a_folder():
    name = str(uuid.uuid4())
    first = Run(name, "f", LocalMachine(), 0)
    attempts = [first.record.attempt]
    first.begin_again()  # after a transient failure
    attempts.append(first.record.attempt)
    for _ in range(2):  # from Prefect's UI, in other processes
        again = Run(name, "f", LocalMachine(), 0)
        assert again.record.allocation == again.record.attempt
        attempts.append(again.record.attempt)
    assert attempts == [name, f"{name}.2", f"{name}.3", f"{name}.4"]
