"""Each try of a run has a folder of its own, whoever starts it again."""

import uuid
from pathlib import Path

import pytest

from slurm_ray_flow import ConnectionFailed, LocalMachine
from slurm_ray_flow.blocks import store
from slurm_ray_flow.tasks.pick_up import try_is_left
from slurm_ray_flow.tasks.run import Run


def test_no_two_tries_share_a_folder():
    name = str(uuid.uuid4())
    first = Run(name, "f", LocalMachine(), 0)
    attempts = [first.record.attempt]
    first.begin_next_try()  # after a transient failure
    attempts.append(first.record.attempt)
    for _ in range(2):  # from Prefect's UI, in other processes
        again = Run(name, "f", LocalMachine(), 0)
        assert again.record.allocation == again.record.attempt
        attempts.append(again.record.attempt)
    assert attempts == [name, f"{name}.2", f"{name}.3", f"{name}.4"]


def test_a_try_that_a_process_left_is_taken_over_and_one_whose_end_was_seen_is_not():
    name = str(uuid.uuid4())
    Run(name, "f", LocalMachine(), 0).hand_over()  # and then the process is killed
    second = Run(name, "f", LocalMachine(), 0)
    assert (second.record.attempt, second.handed_over) == (name, True)
    elsewhere = Run(name, "f", LocalMachine(root=Path("/elsewhere")), 0)
    assert (elsewhere.record.attempt, elsewhere.handed_over) == (f"{name}.2", False)
    store.save_record(second.record)
    third = Run(name, "f", LocalMachine(), 0)
    with third.end_noted(), third.released_at_the_end(LocalMachine()):
        assert third.handed_over
    fourth = Run(name, "f", LocalMachine(), 0)
    assert (fourth.record.attempt, fourth.handed_over) == (f"{name}.2", False)


def test_a_run_that_was_lost_sight_of_is_taken_over():
    name = str(uuid.uuid4())
    first = Run(name, "f", LocalMachine(), 0)
    first.hand_over()
    with pytest.raises(ConnectionFailed), first.end_noted(), first.released_at_the_end(LocalMachine()):
        raise ConnectionFailed("away")
    assert Run(name, "f", LocalMachine(), 0).record.attempt == name


def test_what_is_not_there_any_more_gets_a_try_of_its_own():
    name = str(uuid.uuid4())
    cluster = LocalMachine()
    Run(name, "f", cluster, 0).hand_over()
    second = Run(name, "f", cluster, 0)
    assert try_is_left(second, cluster) is False
    assert (second.record.attempt, second.handed_over, second.over) == (f"{name}.2", False, True)
