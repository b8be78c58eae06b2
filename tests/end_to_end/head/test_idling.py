"""A head that is kept warm: what it says of its idling, and when that ends."""

import os
import time
from pathlib import Path

import pytest

from slurm_ray_flow.remote.head.inbox import close_if_empty
from slurm_ray_flow.remote.scheduler import warm
from slurm_ray_flow.remote.shared.events import RunFiles
from support import BOUND, wait_for


def warmed(lab, name, **spec):
    """A head whose first call has ended, listed as a launch does it."""
    lab.lay(name, os.getpid, keep_warm=600, **spec)
    lab.enter(name, name)
    head = lab.head(name)
    lab.wait_for(name, "idle")
    folder = Path(lab.root, "warm", "needs")
    folder.mkdir(parents=True)
    (folder / name).touch()
    return head


def test_what_idles_is_listed_with_its_size(lab, name):
    warmed(lab, name, cpus=2)
    [found] = warm.listed(str(lab.root))
    assert (found["allocation"], found["calls"]) == (name, [])
    assert found["allocated"]["event"] == "allocated"
    assert {key: found["idle"][key] for key in ("nodes", "cpus", "gpus", "keep_warm")} == {
        "nodes": 1, "cpus": 2, "gpus": 0, "keep_warm": 600.0,
    }  # fmt: skip


def test_while_it_has_a_call_it_does_not_idle(lab, name, tmp_path):
    warmed(lab, name)
    mark = str(tmp_path / "go")

    def wait_for_mark():
        while not os.path.exists(mark):
            time.sleep(0.02)

    lab.lay(f"{name}-1", wait_for_mark)
    lab.enter(name, f"{name}-1")
    lab.wait_for(name, "busy")
    [found] = warm.listed(str(lab.root))
    assert (found["idle"], found["calls"]) == (None, [f"{name}-1"])
    Path(mark).touch()
    wait_for(lambda: [event["event"] for event in lab.events(name)].count("idle") == 2)


def test_a_cancel_file_releases_it_and_what_it_idled_is_told(lab, name):
    head = warmed(lab, name, cpus=3)
    (lab.folder(name) / "cancel").touch()
    assert head.wait(BOUND) == 0
    released = lab.wait_for(name, "released")
    assert (released["reason"], released["cpus"]) == ("released", 3)
    assert released["idled"] > 0
    assert warm.listed(str(lab.root)) == []


def test_a_call_that_came_with_the_release_is_run_first(lab, name):
    head = warmed(lab, name)
    lab.lay(f"{name}-1", os.getpid)
    lab.enter(name, f"{name}-1")
    (lab.folder(name) / "cancel").touch()
    assert lab.wait_for(f"{name}-1", "call_ended")["outcome"] == "value"
    assert head.wait(BOUND) == 0


@pytest.mark.parametrize("waiting", [True, False])
def test_an_inbox_is_closed_only_while_it_is_empty(tmp_path, waiting):
    run = RunFiles(str(tmp_path), "one")
    Path(run.inbox).mkdir(parents=True)
    if waiting:
        Path(run.inbox, "two").touch()
    assert close_if_empty(run) is not waiting
    assert Path(run.inbox).is_dir() is waiting
