"""How many questions a scheduler is asked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest

from slurm_ray_flow.blocks import waits
from slurm_ray_flow.blocks.scheduler import queue, submission
from slurm_ray_flow.blocks.scheduler.queue import JobQueue
from slurm_ray_flow.blocks.scheduler.submission import submit
from slurm_ray_flow.core.errors import Rejected
from slurm_ray_flow.core.launch_events import streamed_to
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm.dialect import SLURM
from slurm_ray_flow.remote.scheduler import commands
from slurm_ray_flow.remote.shared.protocol import OperationError
from support import Noting


class FakeMachine:
    """A login node that takes its time to answer a question."""

    label, root_folder = "fake", PurePosixPath("/root")

    def __init__(self):
        self.asked = 0
        self.go = threading.Event()

    def ask(self, operation, **arguments):
        assert operation == "scheduler.query"
        self.asked += 1
        assert self.go.wait(60)
        return {"text": "", "error": "", "time": time.time()}


def test_who_must_know_at_the_same_time_shares_an_answer_that_is_newer_than_the_question():
    machine = FakeMachine()
    queue = JobQueue(machine, "alice", SLURM)  # type: ignore[arg-type]
    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(queue.fresh, str(number)) for number in range(20)]
        machine.go.set()
        assert [one.result(60) for one in found] == [None] * 20
    assert machine.asked <= 3
    queue.fresh("later")
    assert machine.asked <= 4


class Answering:
    """A login node with an answer for each operation; one that has none gets None."""

    label, root_folder = "fake", PurePosixPath("/root")

    def __init__(self, **answers):
        self.answers = {f"scheduler.{name}": answer for name, answer in answers.items()}
        self.asked = []

    def ask(self, operation, **arguments):
        self.asked.append((operation, arguments))
        return self.answers.get(operation)


class FakeQueue:
    """A queue that names one job, or none."""

    answers, dialect = True, SLURM

    def __init__(self, job=None):
        self.fresh = lambda _: job


REFUSAL = {"job": None, "told": None, "code": 1, "out": "", "err": "sbatch: error: invalid partition name", "mark": "m"}
ONE = JobRequest("f.one")
PATHS = RunPaths(PurePosixPath("/root"), "one")


def test_a_refusal_is_noted_so_that_nobody_asks_again():
    machine = Answering(submit=REFUSAL)
    with pytest.raises(Rejected):
        submit(machine, FakeQueue(), PATHS, ONE)  # type: ignore[arg-type]
    assert [name for name, _ in machine.asked] == ["scheduler.submit", "scheduler.close"]
    closed = machine.asked[-1][1]
    assert (closed["run_id"], closed["cause"]) == ("one", "rejected")
    assert "invalid partition" in closed["message"]


def test_a_refusal_whose_job_is_in_the_queue_is_none():
    machine = Answering(submit=REFUSAL)
    assert submit(machine, FakeQueue(SimpleNamespace(job_id="7")), PATHS, ONE) == "7"  # type: ignore[arg-type]
    assert machine.asked[-1] == ("scheduler.note", {"root": "/root", "run_id": "one", "job": "7"})


def test_a_site_whose_sbatch_submits_nothing_is_told_in_its_words(monkeypatch):
    monkeypatch.setattr(submission, "SETTLE_SECONDS", -1.0)
    monkeypatch.setattr(submission, "pause", lambda _: None)
    shown, machine = Noting(), Answering(submit={**REFUSAL, "code": 0, "out": "Ask for hours first.", "err": ""})
    nothing = FakeQueue()
    nothing.accounted = lambda _: None
    with streamed_to(shown), pytest.raises(Rejected, match=r"Ask for hours first\."):
        submit(machine, nothing, PATHS, ONE)  # type: ignore[arg-type]
    assert all("Ask for hours first." in text for text in shown.said)
    assert len(shown.said) == submission.MOST_WITHOUT_JOB - 1
    assert machine.asked[-1][0] == "scheduler.close"


def test_a_scheduler_that_takes_its_time_is_told_of(monkeypatch):
    monkeypatch.setattr(waits, "SLOW_SECONDS", 0.01)
    shown, machine = Noting(), Answering()

    def ask(operation, **arguments):
        while not shown.said:
            time.sleep(0.001)
        return {**REFUSAL, "job": "7"}

    machine.ask = ask
    with streamed_to(shown):
        assert submit(machine, FakeQueue(), PATHS, ONE) == "7"  # type: ignore[arg-type]
    assert "waits" in shown.said[0]


def test_a_run_that_was_never_submitted_is_told_as_such(monkeypatch):
    monkeypatch.setattr(queue, "ABSENT_SECONDS", -1.0)
    empty = {"text": "", "error": "", "time": time.time()}
    words = {"words": "", "cancelled": False, "job": None, "name": "", "submitted": False}
    machine = Answering(query=empty, words=words)
    life = JobQueue(machine, "alice", SLURM).life(PATHS, [])  # type: ignore[arg-type]
    assert (life.alive, life.cause) == (False, "lost")
    assert "never submitted" in life.message
    assert "scheduler.cancel" in [name for name, _ in machine.asked]  # nor is it from now on


def test_a_run_counts_as_submitted_from_the_moment_that_sbatch_is_started(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    assert not commands.report(str(tmp_path), "one")["submitted"]
    commands.submit(str(tmp_path), "one", ["true"], "f.one", SLURM.rules.of(ONE))
    assert commands.report(str(tmp_path), "one")["submitted"]


def test_a_run_that_was_told_as_never_submitted_is_not_submitted_later(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    commands.cancel(str(tmp_path), "one")
    with pytest.raises(OperationError, match="cancelled"):
        commands.submit(str(tmp_path), "one", ["true"], "f.one", SLURM.rules.of(ONE))
