"""The step that waits for a call's end, against a run's folder on this machine."""

import json
import threading
from pathlib import Path

from slurm_ray_flow import LocalMachine
from slurm_ray_flow.blocks import processes
from slurm_ray_flow.tasks.execute_call import execute_call
from slurm_ray_flow.tasks.run import Run


def test_a_head_that_ends_before_the_call_comes_is_heard_to_its_end(tmp_path):
    """It takes no more calls first, and says why a moment later."""
    cluster = LocalMachine(root=tmp_path)
    run = Run("5d1c8f4e-0000-4000-8000-000000000000", "f", cluster, 0)
    head = processes.this_process()
    events = Path(run.paths.events)
    events.parent.mkdir(parents=True)

    def record(event, **fields):
        with events.open("a") as file:
            file.write(json.dumps({"event": event, **fields}) + "\n")

    record("allocated", pid=head.pid, started=head.started, boot_id=head.boot_id)
    end = {"outcome": None, "cause": "environment", "message": "image format not recognized"}
    threading.Timer(0.5, record, ["call_ended"], end).start()
    ended = execute_call.__wrapped__(run, cluster)
    assert (ended.cause, ended.message) == ("environment", "image format not recognized")
