"""What becomes of runs whose launching process is gone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from slurm_ray_flow.core.run import ALIVE, GONE, NOT_YET, CallEnd, Liveness, RunRecord
from slurm_ray_flow.core.run_state import SILENT, RunFacts
from slurm_ray_flow.core.sweep import Action, decide, slot_is_free

RECORD = RunRecord("r1", "r1", "local", "local-machine", "/root", "r1", "r1", "m:f", 1, 2, "boot", created=1000.0)
LATER = 1000.0 + NOT_YET + 1
ALLOCATED = {"event": "allocated", "pid": 1}


def facts(
    head: str, ended: CallEnd | None = None, record: RunRecord = RECORD, *, now: float = LATER, **more: Any
) -> RunFacts:
    """Of a run whose head is "alive" or "dead", is "absent" or has not begun, or is "unknown"."""
    events = [ALLOCATED] if head in {"alive", "dead"} else []
    life = {"alive": ALIVE, "dead": GONE, "absent": GONE, "unknown": None}[head]
    return RunFacts(record, events, life, ended, now=now, **more)


def judge(
    head: str,
    ended: CallEnd | None = None,
    *,
    state: str = "RUNNING",
    launch: bool | None = False,
    now: float = LATER,
) -> tuple[Action, str]:
    found = decide(facts(head, ended, launch_alive=launch, now=now), flow_state=state)
    return found.action, found.state


@pytest.mark.parametrize("head", ["alive", "dead", "absent", "unknown"])
@pytest.mark.parametrize("state", ["RUNNING", "CANCELLING"])
def test_a_launch_that_lives_sees_to_its_own_end(head: str, state: str) -> None:
    assert judge(head, CallEnd("value"), state=state, launch=True) == (Action.KEEP, "")


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLING"])
@pytest.mark.parametrize("head", ["dead", "absent", "unknown"])
@pytest.mark.parametrize("ended", [None, CallEnd("value")])
def test_the_run_of_a_launch_on_another_machine_is_not_ended(head: str, ended: CallEnd | None, state: str) -> None:
    assert judge(head, ended, state=state, launch=None) == (Action.LEAVE, "")
    assert judge("alive", state=state, launch=None)[0] is (Action.KEEP if state == "RUNNING" else Action.CANCEL)


@pytest.mark.parametrize(
    ("ended", "state"),
    [
        (CallEnd("value"), "COMPLETED"),
        (CallEnd("exception", "user_code", "ValueError: no"), "FAILED"),
        (CallEnd(None, "out_of_memory", "used 2 GB"), "FAILED"),
        (CallEnd(None, "cancelled"), "CANCELLED"),
        (CallEnd(None), "FAILED"),
    ],
)
@pytest.mark.parametrize("head", ["alive", "dead", "unknown"])
def test_a_call_that_ended_decides_the_state(ended: CallEnd, state: str, head: str) -> None:
    assert judge(head, ended) == (Action.END, state)


@pytest.mark.parametrize(
    ("head", "state", "expected"),
    [
        ("alive", "RUNNING", (Action.KEEP, "")),
        ("alive", "CANCELLING", (Action.CANCEL, "")),
        ("dead", "RUNNING", (Action.END, "CRASHED")),
        ("dead", "CANCELLING", (Action.END, "CANCELLED")),
        ("absent", "PENDING", (Action.END, "CRASHED")),
        ("absent", "CANCELLING", (Action.END, "CANCELLED")),
        ("unknown", "RUNNING", (Action.LEAVE, "")),
    ],
)
def test_without_an_end_the_head_decides(head: str, state: str, expected: tuple[Action, str]) -> None:
    assert judge(head, state=state) == expected


def test_a_head_gets_time_to_say_that_it_lives() -> None:
    assert judge("absent", now=RECORD.created + NOT_YET / 2) == (Action.KEEP, "")
    assert judge("absent", state="CANCELLING", now=RECORD.created + 1) == (Action.CANCEL, "")


def test_so_does_the_head_of_a_later_try() -> None:
    again = dataclasses.replace(RECORD, handed_over_at=LATER)
    assert decide(facts("absent", record=again, now=LATER + 1), flow_state="RUNNING").action is Action.KEEP
    assert decide(facts("absent", record=again, now=LATER + NOT_YET), flow_state="RUNNING").action is Action.END


def test_what_was_asked_to_cancel_is_cancelled_even_when_it_made_it_to_a_value() -> None:
    assert judge("dead", CallEnd("value"), state="CANCELLING") == (Action.END, "CANCELLED")


def test_the_message_names_cause_and_run() -> None:
    failed = decide(facts("dead", CallEnd(None, "time_limit", "after 2 h")), flow_state="RUNNING")
    assert failed.text == "time_limit: after 2 h"
    lost = decide(facts("dead"), flow_state="RUNNING")
    assert lost.text.startswith("lost:") and "r1" in lost.text


def test_why_a_scheduler_ended_a_run_is_its_cause() -> None:
    killed = RunFacts(RECORD, [ALLOCATED], Liveness(alive=False, cause="out_of_memory", message="used 2 GB"), now=LATER)
    found = decide(killed, flow_state="RUNNING")
    assert (found.action, found.state, found.cause) == (Action.END, "FAILED", "out_of_memory")


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLING"])
def test_a_cluster_that_gives_no_answer_ends_no_run_for_a_day(state: str) -> None:
    def judged(silent: float) -> Action:
        return decide(facts("unknown", silent=silent), flow_state=state).action

    assert judged(0.0) is judged(SILENT - 1) is Action.KEEP
    assert judged(SILENT + 1) is Action.END


@pytest.mark.parametrize("head", ["absent", "unknown"])
def test_a_launch_that_died_in_the_line_makes_nobody_wait(head: str) -> None:
    waiting = dataclasses.replace(RECORD, waiting="waiting for desi")
    found = decide(facts(head, record=waiting, now=RECORD.created + 1), flow_state="RUNNING")
    assert (found.action, found.state) == (Action.END, "CRASHED")


@pytest.mark.parametrize(
    ("head", "ended", "free"),
    [
        ("alive", None, False),
        ("unknown", None, False),
        ("dead", None, True),
        ("alive", CallEnd("value"), True),
        ("absent", None, True),
    ],
)
def test_a_slot_comes_back_when_its_run_has_ended_and_not_before(head: str, ended: CallEnd, free: bool) -> None:
    assert slot_is_free(facts(head, ended)) is free


def test_a_slot_whose_run_is_about_to_start_is_not_free() -> None:
    assert not slot_is_free(facts("absent", now=RECORD.created + 1))
    assert slot_is_free(None)
