"""The step that brings the outcome home, and the one for the files that the function has written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect import task
from prefect.logging import get_run_logger

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.artifacts import about_outputs
from slurm_ray_flow.core.errors import Cancelled, ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.outputs import counted
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.run import CallEnd, Outcome, RunRecord
from slurm_ray_flow.tasks.page import page
from slurm_ray_flow.tasks.retry import ONCE, step
from slurm_ray_flow.tasks.run import Run
from slurm_ray_flow.tasks.run_files import bring, read_outcome


@task(name="fetch_outputs", task_run_name="fetch_outputs", **ONCE)
def fetch_outputs(record: RunRecord, cluster: Cluster, options: Options) -> None:
    """Copy the files of the option `outputs` home. A failure is a warning: the files stay with the run."""

    def warn(text: str) -> None:
        reporter().warn(text)
        get_run_logger().warning(text)

    try:
        brought = bring(record, cluster, options.outputs, None, options.overwrite_outputs, warn)
        size = sum(path.stat().st_size for path in brought.paths)
        reporter().say(f"{counted(len(brought.paths), size)}, in {record.home_folder}")
    except (SlurmRayFlowError, OSError) as error:
        warn(f"{getattr(error, 'what', error)}; `srf fetch {record.run_id[:8]} PATTERN` brings the run's files")


@contextlib.contextmanager
def outputs_brought(run: Run, cluster: Cluster, options: Options) -> Iterator[None]:
    """Copy the call's files home when the block ends, also after a failed call."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, ConnectionFailed | Cancelled):
            _after(run, cluster, options)
        raise
    if options.outputs:
        reporter().step("fetch_outputs")
    _after(run, cluster, options)


def _after(run: Run, cluster: Cluster, options: Options) -> None:
    record, ended = run.record, run.call_ended
    written = ended.files if ended else None
    if written:
        page().show(about_outputs(written, record))
    if options.outputs and (ended or record.attempt.partition(".")[0] != record.run_id):  # an earlier run's value
        fetch_outputs(record, cluster, options)
    elif written:
        kept = counted(written["count"], written["bytes"])
        reporter().say(f"{kept} that it wrote stay there: `srf fetch {record.run_id[:8]}` lists them")


@step()
def fetch_outcome(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Outcome:
    """Read the outcome, and check its digest against that in the events.

    Raises:
        RunError: there is none; its type says why.
    """
    reporter().step("fetch_outcome")
    return read_outcome(record, ended, cluster)


def outcome_of(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Outcome:
    """The outcome of a call that has ended; a call without an outcome takes no step in Prefect.

    Raises:
        RunError: there is none; its type says why.
    """
    read = read_outcome if ended.outcome is None else fetch_outcome
    return read(record, ended, cluster)
