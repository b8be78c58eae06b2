"""One more try of a run, told wherever somebody may look: terminal, Prefect, `srf runs`."""

from __future__ import annotations

import contextlib
import time

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.errors import Cancelled, SlurmRayFlowError
from slurm_ray_flow.core.interruption import interrupted
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.retries import Again
from slurm_ray_flow.tasks.run import Run, where

LOOK_SECONDS = 0.5


def begin_again(run: Run, failure: BaseException, again: Again, cluster: Cluster) -> None:
    """Say why the run is tried again and what is changed, wait if that is wanted, and make room for the next try.

    Raises:
        Cancelled: somebody cancelled the run meanwhile.
    """
    reporter().again(failure, again.text)
    told = f"{type(failure).__name__}: {again.text}"
    if flow_run.get_id():
        get_run_logger().warning(told)
    run.note(again=told)
    _pause(run, again.pause, cluster)
    if again.changed and run.record.allocation == run.record.attempt:
        with contextlib.suppress(SlurmRayFlowError):  # it leaves by itself, later
            cluster.write(run.paths.cancel, b"")  # a warm one has too little of what the next try needs more of
    run.begin_again()


def _pause(run: Run, seconds: float, cluster: Cluster) -> None:
    """Wait; whoever cancels the run meanwhile finds no try to end, and leaves the file that asks for it."""
    until = time.monotonic() + seconds
    while True:
        interrupted()
        if _is_cancelled(run, cluster):
            run.call_ended = None  # the end of the try before is not the run's
            raise Cancelled("the run was cancelled between two tries", where=where(run.record))
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LOOK_SECONDS))


def _is_cancelled(run: Run, cluster: Cluster) -> bool:
    try:
        return run.paths.cancel.name in cluster.names(run.paths.folder)
    except SlurmRayFlowError:  # it does not answer: the next try will say so
        return False
