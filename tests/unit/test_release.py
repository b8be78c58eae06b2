"""Ending a run: what counts as gone."""

import json
import threading
from pathlib import Path

from slurm_ray_flow import LocalMachine
from slurm_ray_flow.core.run import RunPaths, RunRecord
from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.tasks.run import release
from support import wait_for


def append(path, event):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(event) + "\n")


def record_on(root, allocation):
    return RunRecord("mine", "mine", "local", "local-machine", str(root), "mine", allocation, "f", 1, None, None)


def test_a_call_that_waits_for_a_warm_head_is_cancelled_though_it_has_no_event_yet(tmp_path):
    alive = {"event": "allocated", **processes.this()}
    record, cluster = record_on(tmp_path, "other"), LocalMachine(root=tmp_path)
    append(RunPaths(record.paths.root, "other").events, alive)

    def head():
        wait_for(Path(record.paths.cancel).exists)
        append(record.paths.events, {"event": "call_ended", "outcome": None, "cause": "cancelled"})

    thread = threading.Thread(target=head)
    thread.start()
    assert release(record, cluster)
    thread.join()
    assert Path(record.paths.cancel).exists()


def test_a_run_that_never_got_to_the_cluster_is_gone(tmp_path):
    record = record_on(tmp_path, "mine")
    assert release(record, LocalMachine(root=tmp_path))
    assert not Path(record.paths.cancel).exists()
