"""Which calls a warm allocation of a scheduler still has time for."""

import json
import time
from pathlib import Path

import pytest

from slurm_ray_flow.remote.head.inbox import Idling
from slurm_ray_flow.remote.scheduler import warm
from slurm_ray_flow.remote.shared.events import RunFiles
from support import wait_for


def allocation(root, *events, inbox=(), **spec):
    """One that is listed, with what its head has said."""
    run = RunFiles(str(root), "first")
    Path(run.inbox).mkdir(parents=True)
    for name in inbox:
        Path(run.inbox, name).touch()
    Path(run.spec).write_text(json.dumps({"format": 1, "scheduler": {}, **spec}))
    Path(run.events).write_text("".join(json.dumps({"time": time.time(), **event}) + "\n" for event in events))
    folder = Path(root, "warm", "needs")
    folder.mkdir(parents=True)
    (folder / "first").touch()
    return str(folder)


BEGUN = {"event": "allocated"}, {"event": "call_started"}


def idle(left):
    return {"event": "idle", "ends": time.time() + left}


@pytest.mark.parametrize(
    ("left", "needs", "joins"), [(300, 200, True), (300, 400, False), (300, None, True), (None, 400, True)]
)
def test_one_that_idles_takes_what_its_job_has_time_for(tmp_path, left, needs, joins):
    event = {"event": "idle"} if left is None else idle(left)
    folder = allocation(tmp_path, *BEGUN, event)
    assert warm.join_or_offer(str(tmp_path), folder, "mine", needs) == ("first" if joins else None)


@pytest.mark.parametrize(("needs", "joins"), [(600, False), (250, True), (None, True)])
def test_one_that_is_to_begin_has_what_its_first_call_leaves(tmp_path, needs, joins):
    folder = allocation(tmp_path, inbox=["first"], scheduler={"name": "f"}, time_limit=600.0, keep_warm=300.0)
    assert warm.join_or_offer(str(tmp_path), folder, "mine", needs) == ("first" if joins else None)


def test_one_without_a_limit_of_its_own_is_joined_while_it_is_to_begin(tmp_path):
    folder = allocation(tmp_path, inbox=["first"], scheduler={"name": "f"}, time_limit=None)
    assert warm.join_or_offer(str(tmp_path), folder, "mine", 600) == "first"


@pytest.mark.parametrize(("lasts", "leaves"), [(55.0, None), (4.0, None), (0.05, "its job is nearly over")])
def test_a_tenth_of_a_short_job_is_not_idled_through(tmp_path, lasts, leaves):
    run = RunFiles(str(tmp_path), "one")
    idling = Idling(run, {"keep_warm": 600.0, "lasts": lasts})
    idling.begin({"nodes": 1, "cpus": 1, "gpus": 0})
    wait_for(lambda: idling.end_reason() == leaves)
