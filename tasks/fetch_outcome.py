"""The step that brings the outcome home, and the one for the files that the function has written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect import task

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.artifacts import about_outputs
from slurm_ray_flow.core.efficiency import killed_text, resources_used
from slurm_ray_flow.core.errors import Cancelled, ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.core.launch_events import ArtifactMade, Note, StepStarted, Warned, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.outputs import counted
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.run import CallEnd, LeftThere, Outcome, RunRecord
from slurm_ray_flow.tasks.retry import ONCE, step
from slurm_ray_flow.tasks.run import Run
from slurm_ray_flow.tasks.run_files import bring, read_outcome


@task(name="fetch_outputs", task_run_name="fetch_outputs", **ONCE)
def fetch_outputs(record: RunRecord, cluster: Cluster, options: Options) -> None:
    """Copy the files of the option `outputs` home. A failure is a warning: the files stay with the run."""
    try:
        overwrite = options.overwrite_outputs
        brought = bring(record, cluster, options.outputs, None, overwrite, lambda text: publish(Warned(text)))
        size = sum(path.stat().st_size for path in brought.paths)
        publish(Note(f"{counted(len(brought.paths), size)}, in {record.home_folder}"))
    except (SlurmRayFlowError, OSError) as error:
        what = getattr(error, "what", error)
        publish(Warned(f"{what}; `srf fetch {record.run_id[:8]} PATTERN` brings the run's files"))


@contextlib.contextmanager
def outputs_brought(run: Run, cluster: Cluster, options: Options) -> Iterator[None]:
    """Copy the call's files home when the block ends, also after a failed call."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, ConnectionFailed | Cancelled):
            _bring_or_note_outputs(run, cluster, options)
        raise
    if options.outputs:
        publish(StepStarted("fetch_outputs"))
    _bring_or_note_outputs(run, cluster, options)


def _bring_or_note_outputs(run: Run, cluster: Cluster, options: Options) -> None:
    record, ended = run.record, run.call_ended
    written = ended.files if ended else None
    if written:
        publish(ArtifactMade(about_outputs(written, record)))
    if options.outputs and (ended or record.attempt.partition(".")[0] != record.run_id):  # an earlier run's value
        fetch_outputs(record, cluster, options)
    elif written:
        size = counted(written["count"], written["bytes"])
        publish(Note(f"{size} that it wrote stay there: `srf fetch {record.run_id[:8]}` lists them"))


@step()
def fetch_outcome(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Outcome:
    """Read the outcome, and check its digest against that in the events.

    Raises:
        RunError: there is no outcome; the error's type says why.
    """
    return read_outcome(record, ended, cluster)


LARGE = 16 << 20
"""The bytes from which on a value stays on its cluster until somebody asks for it, where its launch allows that."""


def outcome_of(run: Run, ended: CallEnd, cluster: Cluster, options: Options) -> Outcome:
    """Fetch the outcome of a call that has ended, and publish what it used; without an outcome there is no step for it.

    The large value of a run that was submitted is not fetched.

    Raises:
        RunError: there is no outcome; the error's type says why.
    """
    if run.may_leave_value and ended.outcome == "value" and ended.most >= LARGE and options.cache is None:
        publish(Note(f"its value, {format_memory(ended.most)}, stays there until it is asked for"))
        outcome = Outcome(value=LeftThere())
    else:
        read = read_outcome if ended.outcome is None else fetch_outcome
        outcome = read(run.record, ended, cluster)
    if warning := killed_text(ended.usage):
        publish(Warned(warning))
    if used := resources_used(ended.usage, options):
        publish(used)
    return outcome
