"""The runs of a cluster: starting a head, and asking whether it lives."""

from __future__ import annotations

import subprocess
import time
from typing import Any, Dict

from slurm_ray_flow.remote import processes
from slurm_ray_flow.remote.errors import OperationError
from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.liveness import noted_alive
from slurm_ray_flow.remote.protocol import find_event

SUBMIT_SECONDS = 60.0
"""The head says that it lives within a second; on a machine under load, much later."""


def submit(root: str, run_id: str) -> None:
    """Start the head of a run, once: a head that was started stays the only one."""
    run = Run(root, run_id)
    if find_event(run.recorded(), "allocated"):
        return
    command = ["/bin/sh", run.script, "--detach"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=SUBMIT_SECONDS,
            env=processes.inherited(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _not_started(run, "it did not say within {:g} s that it lives".format(SUBMIT_SECONDS)) from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise _not_started(run, said or "it ended with {}".format(done.returncode))


def clock() -> float:
    """This machine's time, in seconds since 1970."""
    return time.time()


def _not_started(run: Run, why: str) -> OperationError:
    return OperationError("the head did not start: {}".format(why), run.head_log, "read that log", "environment")


OPERATIONS: Dict[str, Any] = {"submit": submit, "alive": noted_alive, "clock": clock}
