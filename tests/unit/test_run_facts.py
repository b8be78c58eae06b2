"""What the folders of this machine say of a run is what its cluster says; and both are read by one rule."""

import dataclasses
import json
import uuid
from pathlib import Path

import pytest

from slurm_ray_flow import LocalMachine, RunState
from slurm_ray_flow.blocks.processes import alive_as_noted, this_process
from slurm_ray_flow.blocks.run_facts import ask, read_here
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.run_state import run_state
from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.liveness import noted_alive


def launched(root: Path, **changes) -> RunRecord:
    """A run whose launching process is gone for long."""
    name = str(uuid.uuid4())
    record = RunRecord(name, name, "local", "local-machine", str(root), name, name, "f", 1, 1, "gone", created=0.0)
    record = dataclasses.replace(record, **changes)
    Path(record.paths.folder).mkdir(parents=True)
    return record


def tell(root: Path, run_id: str, *events: dict) -> None:
    folder = root / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


ALIVE = {"event": "allocated", **processes.this()}
DEAD = {**ALIVE, "started": 1}
VALUE = {"event": "call_ended", "outcome": "value"}


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], RunState.LOST),
        ([ALIVE], RunState.STARTING),
        ([ALIVE, {"event": "call_started"}], RunState.RUNNING),
        ([DEAD, {"event": "call_started"}], RunState.LOST),
        ([DEAD, VALUE], RunState.SUCCEEDED),
    ],
)
def test_the_folders_and_the_cluster_tell_the_same(tmp_path, events, state):
    record = launched(tmp_path)
    tell(tmp_path, record.attempt, *events)
    statuses = [run_state(facts) for facts in (read_here(record), ask(record, LocalMachine(root=tmp_path)))]
    assert statuses[0] == statuses[1]
    assert statuses[0].state is state


@pytest.mark.parametrize(("head", "state"), [(ALIVE, RunState.WAITING), (DEAD, RunState.LOST)])
def test_a_call_on_a_warm_cluster_goes_with_that_ones_head(tmp_path, head, state):
    record = launched(tmp_path, allocation="warm")
    tell(tmp_path, "warm", head, VALUE)  # the value of the call before
    for facts in (read_here(record), ask(record, LocalMachine(root=tmp_path))):
        status = run_state(facts)
        assert (status.state, status.settled) == (state, state.final)


def test_home_and_cluster_know_a_process_by_one_rule():
    this = this_process()
    assert noted_alive(processes.this()) is alive_as_noted(processes.this()) is alive_as_noted(vars(this)) is True
    for other in ({"started": 1}, {"boot_id": "before"}, {"namespace": "pid:[1]"}, {"boot_id": "b", "host": "other"}):
        noted = {**processes.this(), **other}
        assert noted_alive(noted) is alive_as_noted(noted)
