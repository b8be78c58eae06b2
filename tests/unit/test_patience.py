"""Waiting for something no longer than one can wait."""

import threading
import time

import pytest

from slurm_ray_flow.blocks import waits
from slurm_ray_flow.blocks.waits import within
from slurm_ray_flow.core.launch_events import Note, publish, streamed_to
from support import Noting


@pytest.fixture
def said():
    shown = Noting()
    with streamed_to(shown):
        yield shown.said


def test_what_comes_in_time_is_given_or_raised(said):
    def fail():
        publish(Note("fails"))
        raise TimeoutError("its own")

    assert within(10, lambda: 42, ValueError) == 42
    with pytest.raises(TimeoutError, match="its own"):
        within(10, fail, ValueError)
    assert said == ["fails"]


def test_what_comes_late_is_not_waited_for_and_not_heard(said):
    go, gone = threading.Event(), threading.Event()

    def slow():
        publish(Note("before"))
        go.wait(30)
        publish(Note("after"))
        gone.set()

    with pytest.raises(ValueError, match="late"):
        within(0.2, slow, lambda: ValueError("late"))
    go.set()
    assert gone.wait(30)
    assert said == ["before"]


def test_what_takes_long_without_a_word_is_told(said, monkeypatch):
    monkeypatch.setattr(waits, "SLOW_SECONDS", 0.01)
    with waits.message_if_slow("waits"):
        while not said:
            time.sleep(0.001)
    assert said == ["waits"]
    monkeypatch.setattr(waits, "SLOW_SECONDS", 60)
    with waits.message_if_slow("waits again"):
        pass
    assert said == ["waits"]
