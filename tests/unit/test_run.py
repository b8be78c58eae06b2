import json
from pathlib import PurePosixPath

import pytest

from slurm_ray_flow import Crashed, Lost, OutOfMemory, ResultError, RunState, TimeLimit
from slurm_ray_flow.core.run import GONE, Liveness, RunPaths, RunRecord, error_of, parse_events, state_of
from slurm_ray_flow.tasks.run import left

ALLOCATED = {"event": "allocated", "pid": 1, "started": 2, "boot_id": "b"}
STARTED = {"event": "call_started", "pid": 3}


def ended(outcome, cause=None):
    return {"event": "call_ended", "outcome": outcome, "cause": cause}


@pytest.mark.parametrize(
    ("events", "alive", "state"),
    [
        ([], False, RunState.PREPARING),
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
    assert state_of(events, Liveness(alive)) is state


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
    assert type(left(record, GONE)) is kind
