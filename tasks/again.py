"""One more try of a run, told wherever somebody may look: terminal, Prefect, `srf runs`."""

from __future__ import annotations

import time

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slurm_ray_flow.core.interruption import interrupted
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.retries import Again
from slurm_ray_flow.tasks.run import Run

LOOK_SECONDS = 0.25


def begin_again(run: Run, failure: BaseException, again: Again) -> None:
    """Say why the run is tried again and what is changed, wait if that is wanted, and make room for the next try.

    Raises:
        Cancelled: somebody cancelled the flow run meanwhile.
    """
    reporter().again(failure, again.text)
    if flow_run.get_id():
        get_run_logger().warning("%s: %s", type(failure).__name__, again.text)
    run.note(again=again.text)
    until = time.monotonic() + again.pause
    while (left := until - time.monotonic()) > 0:
        interrupted()
        time.sleep(min(left, LOOK_SECONDS))
    run.begin_again()
