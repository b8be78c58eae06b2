import dataclasses
import json
from pathlib import PurePosixPath

import pytest

from slurm_ray_flow import Crashed, Lost, OutOfMemory, ResultError, RunState, TimeLimit
from slurm_ray_flow.core.run import ALIVE, GONE, Liveness, RunPaths, RunRecord, error_of, parse_events
from slurm_ray_flow.core.run_state import RunFacts, run_state
from slurm_ray_flow.tasks.run import error_without_outcome

ALLOCATED = {"event": "allocated", "pid": 1, "started": 2, "boot_id": "b"}
STARTED = {"event": "call_started", "pid": 3}


RECORD = RunRecord("id", "id", "desi", "k", "/r", "id", "id", "f", 1, 2, "b", created=0.0)


def ended(outcome, cause=None):
    return {"event": "call_ended", "outcome": outcome, "cause": cause}


@pytest.mark.parametrize(
    ("events", "alive", "state"),
    [
        ([], False, RunState.LOST),
        ([], True, RunState.WAITING),
        ([ALLOCATED], True, RunState.STARTING),
        ([ALLOCATED, STARTED], True, RunState.RUNNING),
        ([STARTED], True, RunState.RUNNING),  # on a warm cluster, whose own events say that it has begun
        ([STARTED], False, RunState.LOST),
        ([ALLOCATED], False, RunState.LOST),
        ([ALLOCATED, STARTED], False, RunState.LOST),
        ([ALLOCATED, STARTED, ended("value")], False, RunState.SUCCEEDED),
        ([ALLOCATED, STARTED, ended("value")], True, RunState.SUCCEEDED),
        ([ALLOCATED, STARTED, ended("exception", "user_code")], False, RunState.FAILED),
        ([ALLOCATED, STARTED, ended(None, "out_of_memory")], False, RunState.FAILED),
        ([ALLOCATED, STARTED, ended(None, "cancelled")], False, RunState.CANCELLED),
    ],
)
def test_the_state_follows_from_the_events_and_the_heads_life(events, alive, state):
    assert run_state(RunFacts(RECORD, events, Liveness(alive))).state is state


@pytest.mark.parametrize(
    ("noted", "events", "life", "launch", "state", "cause"),
    [
        ({}, [], GONE, True, RunState.PREPARING, ""),
        ({"waiting": "behind ann"}, [], None, True, RunState.WAITING, ""),
        ({"waiting": "behind ann"}, [], None, False, RunState.LOST, "lost"),
        ({"waiting": "behind ann"}, [], None, None, RunState.WAITING, ""),
        ({"failure": "no", "failure_cause": "rejected"}, [], GONE, True, RunState.FAILED, "rejected"),
        ({"failure": "no", "failure_cause": "cancelled"}, [ALLOCATED], GONE, False, RunState.CANCELLED, "cancelled"),
        ({"failure": "away", "failure_cause": "connection"}, [ALLOCATED], ALIVE, False, RunState.STARTING, ""),
        ({"ended": "succeeded"}, [], None, False, RunState.SUCCEEDED, ""),
        ({"ended": "lost"}, [ended("value")], GONE, False, RunState.SUCCEEDED, ""),
        ({}, [ended("exception", "user_code")], GONE, True, RunState.STARTING, ""),
        ({"ended": "failed"}, [ended("exception", "user_code")], GONE, True, RunState.FAILED, "user_code"),
        ({}, [ALLOCATED, STARTED], None, False, RunState.RUNNING, ""),
        ({}, [], Liveness(alive=False, cause="time_limit"), False, RunState.FAILED, "time_limit"),
        ({}, [], Liveness(alive=False, cause="time_limit"), True, RunState.STARTING, ""),
    ],
)
def test_what_home_noted_and_what_the_cluster_says_give_one_state(noted, events, life, launch, state, cause):
    status = run_state(RunFacts(dataclasses.replace(RECORD, **noted), events, life, launch_alive=launch))
    assert (status.state, status.cause) == (state, cause)


def test_a_run_that_was_launched_a_moment_ago_is_not_lost_for_good():
    young = dataclasses.replace(RECORD, handed_over_at=1000.0)
    assert not run_state(RunFacts(young, [], GONE, now=1001.0)).settled
    assert run_state(RunFacts(young, [], GONE, now=2000.0)).settled
    assert run_state(RunFacts(young, [ALLOCATED], GONE, now=1001.0)).settled


def test_a_line_that_is_not_whole_yet_is_left_for_later():
    whole = (json.dumps(ALLOCATED) + "\n").encode()
    events, taken = parse_events(whole + b'{"event": "call_st')
    assert events == [ALLOCATED]
    assert taken == len(whole)


@pytest.mark.parametrize(
    "damage", [b"\0\0\0\0\n", b'{"event": "call_st\n', b"[]\n", b'{"event": 3}\n', b"\xff\xfe\n", b"{}\n", b"null\n"]
)
def test_a_damaged_line_hides_no_other(damage):
    whole = (json.dumps(ALLOCATED) + "\n").encode()
    data = whole + damage + b"\0\0" + (json.dumps(STARTED) + "\n").encode()
    assert parse_events(data) == ([ALLOCATED, STARTED], len(data))


def test_all_files_of_a_run_lie_in_its_folder():
    paths = RunPaths(PurePosixPath("/r"), "abc")
    assert str(paths.outcome) == "/r/runs/abc/outcome.dill"
    assert str(paths.inbox("other")) == "/r/runs/other/inbox/abc"
    with pytest.raises(AttributeError):
        _ = paths.outcom


def test_a_record_of_a_later_version_can_be_read():
    record = RunRecord("id", "id", "local", "local-machine", "/r", "id", "id", "f", 1, 2, "b")
    later = json.loads(record.to_json()) | {"colour": "red"}
    assert RunRecord.from_json(json.dumps(later)) == record


@pytest.mark.parametrize(
    ("cause", "kind"), [("out_of_memory", OutOfMemory), ("time_limit", TimeLimit), ("lost", Lost), ("new", Crashed)]
)
def test_each_cause_has_its_error(cause, kind):
    error = error_of(cause, "what", "where")
    assert type(error) is kind
    assert "where: where" in str(error)


@pytest.mark.parametrize(("attempt", "tries"), [("abc", 1), ("abc.2", 2), ("abc.11", 11), ("other.3", 1)])
def test_the_tries_of_a_run_are_counted(attempt, tries):
    record = RunRecord("abc", "abc", "local", "local-machine", "/", attempt, attempt, "f", 1, 2, "b")
    assert record.tries == tries


def test_what_the_head_advises_is_the_errors_advice():
    error = error_of("environment", "there is no image (c1)\nTry: pull one", "where")
    assert (error.what, error.advice) == ("there is no image (c1)", "pull one")


@pytest.mark.parametrize(("ended", "kind"), [("succeeded", ResultError), ("lost", Lost), ("", Lost)])
def test_a_run_that_succeeded_is_not_told_as_lost_when_its_events_are(ended, kind):
    record = RunRecord("id", "id", "local", "k", "/r", "id", "id", "f", 1, 2, "b", handed_over=True, ended=ended)
    assert type(error_without_outcome(record, run_state(RunFacts(record, [], GONE)))) is kind
