"""Why a job ended that left no word of its own."""

from __future__ import annotations

import dataclasses

import pytest

from slurm_ray_flow.core.scheduler import end_of_job, goes_on
from slurm_ray_flow.core.slurm.accounting import cause_of_end
from slurm_ray_flow.core.slurm.dialect import SLURM
from slurm_ray_flow.core.slurm.queue import SlurmJob


def ended(state: str, reason: str = "None") -> SlurmJob:
    return SlurmJob(job_id="7", name="train.r1", state=state, reason=reason, nodelist="c1")


@pytest.mark.parametrize(
    ("job", "words", "began", "cause"),
    [
        (ended("TIMEOUT", "TimeLimit"), "", True, "time_limit"),
        (ended("NODE_FAIL", "NodeDown"), "", True, "node_failed"),
        (ended("FAILED", "NonZeroExitCode"), "", True, "lost"),
        (ended("FAILED", "NonZeroExitCode"), "run.sh: python: not found", False, "environment"),
        (ended("FAILED", "NonZeroExitCode"), "Detected 1 oom-kill event(s)", True, "out_of_memory"),
        (ended("FAILED", "JobLaunchFailure"), "", False, "environment"),
        (ended("FAILED", "JobLaunchFailure"), "", True, "lost"),  # so Slurm calls it when the script was killed, too
        (None, "*** JOB 7 ON c1 CANCELLED AT 2026-11-21T20:22:23 DUE TO PREEMPTION ***", True, "preempted"),
        (None, "*** JOB 7 ON c1 CANCELLED AT 2026-11-21T20:22:23 DUE TO JOB REQUEUE ***", True, "preempted"),
        (None, "*** JOB 7 ON c1 CANCELLED AT 2026-11-21T20:22:23 ***", True, "cancelled"),
        (None, "", True, "lost"),
    ],
)
def test_what_slurm_says_and_then_what_the_log_says(job: SlurmJob | None, words: str, began: bool, cause: str) -> None:
    assert cause_of_end(job, words, began=began)[0] == cause


def test_the_message_names_job_node_state_and_reason_and_shows_the_log_where_nothing_else_explains() -> None:
    _, message = cause_of_end(ended("FAILED", "NonZeroExitCode"), "module: command not found\n", began=False)
    assert "job 7 on c1: FAILED, NonZeroExitCode" in message
    assert message.endswith("module: command not found")
    assert cause_of_end(ended("TIMEOUT"), "noise", began=True)[1].endswith("(job 7 on c1: TIMEOUT)")


BEGAN = [{"event": "allocated", "node": "c1"}]
LEFT = {"words": "", "cancelled": False, "submitted": True, "job": "7", "name": "train.r1"}


@pytest.mark.parametrize(
    ("state", "nodelist", "events", "lives"),
    [
        ("PENDING", "", [], True),
        ("PENDING", "", BEGAN, False),  # put back: it does not begin a second time
        ("RUNNING", "c[1-2]", BEGAN, True),
        ("RUNNING", "c2", BEGAN, False),  # its first node is gone
        ("RUNNING", "c2", [], True),
        ("FAILED", "c1", BEGAN, False),
    ],
)
def test_a_job_goes_on_while_it_has_the_program_or_may_get_it(
    state: str, nodelist: str, events: list[dict[str, str]], lives: bool
) -> None:
    assert goes_on(SLURM, dataclasses.replace(ended(state), nodelist=nodelist), events) is lives


@pytest.mark.parametrize(
    ("found", "left", "cause", "word"),
    [
        (ended("PENDING"), {}, "preempted", "put back"),
        (dataclasses.replace(ended("RUNNING"), nodelist="c2"), {}, "node_failed", "first node"),
        (ended("RUNNING"), {}, "node_failed", "killed"),
        (None, {"submitted": False}, "lost", "never submitted"),
        (None, {}, "lost", "left no word"),
        (ended("CANCELLED"), {"cancelled": True}, "cancelled", "The run was cancelled."),
        (ended("CANCELLED"), {}, "cancelled", "in Slurm"),
    ],
)
def test_a_run_whose_program_is_gone_has_a_cause(
    found: SlurmJob | None, left: dict[str, bool], cause: str, word: str
) -> None:
    told = end_of_job(SLURM, found, None, {**LEFT, **left}, BEGAN)
    assert told[0] == cause and word in told[1]
