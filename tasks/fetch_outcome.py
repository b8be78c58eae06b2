"""The step that brings the outcome home, and the one for the files that the function has written."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.output_files import CHANGED, BroughtFiles, bring_home
from slurm_ray_flow.core.artifacts import about_outputs
from slurm_ray_flow.core.errors import Cancelled, ConnectionFailed, ResultError, SlurmRayFlowError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.outputs import WrittenFile, counted, matching_files, printable_name, summary
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.run import CallEnd, Outcome, RunRecord, error_of
from slurm_ray_flow.remote.shared import failures, payload, pickling
from slurm_ray_flow.tasks.page import page
from slurm_ray_flow.tasks.retry import ONCE, step
from slurm_ray_flow.tasks.run import Run, where

Warn = Callable[[str], object]


def files_of(record: RunRecord, cluster: Cluster, warn: Warn) -> tuple[PurePosixPath, list[WrittenFile]]:
    """The working directory of a run's newest try, and what the function has written there."""
    written = cluster.ask("workplace.written", root=record.root, run_id=record.attempt)
    files = [WrittenFile(*file) for file in written["files"]]
    if written["more"]:
        warn(f"the run has written still more files than the first {len(files)}, which are all that can be had")
    return PurePosixPath(written["folder"]), files


def bring(
    record: RunRecord, cluster: Cluster, patterns: Sequence[str], to: Path | None, overwrite: bool, warn: Warn
) -> BroughtFiles:
    """Copy the files home that match the patterns.

    Args:
        record: the run.
        cluster: its cluster.
        patterns: paths, folders and globs, from the function's working directory.
        to: the folder they go to; None for the one that is beside the script.
        overwrite: also over files that were changed here since the launch.
        warn: gets what was not brought, and why.

    Raises:
        OptionError: a pattern leads out of the working directory.
        SyncError: they can't be written here, or rsync fails.
        ConnectionFailed: the cluster does not answer.
    """
    matching_files((), patterns)  # they are looked at before the cluster is asked
    folder, files = files_of(record, cluster, warn)
    for pattern in patterns:
        if not matching_files(files, [pattern]):
            warn(f"the run has written no {pattern!r}; it has written {summary(files) or 'no files at all'}")
    target, since = to or Path(record.home_folder or Path.cwd()), float("inf") if overwrite else record.created
    brought = bring_home(cluster, folder, matching_files(files, patterns), target, since, reporter().say)
    for path, why in brought.left.items():
        warn(f"{printable_name(path)} stays with the run: {why}")
    if CHANGED in brought.left.values():
        typed = shlex.join(["srf", "fetch", record.run_id[:8], *patterns, "--overwrite"])
        warn(f"`{typed}` brings it over what is here")
    return brought


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


def read_outcome(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Outcome:
    """The outcome of a call that has ended.

    Raises:
        RunError: there is none; its type says why.
    """
    if ended.outcome is None:
        raise error_of(ended.cause or "crashed", ended.message, where(record))
    content = _read(record, ended, cluster)
    if ended.outcome == "value":
        return Outcome(value=content["value"])
    exception = failures.unpack(content)
    if ended.cause != "user_code":
        raise error_of(ended.cause or "crashed", ended.message, where(record)) from exception
    return Outcome(exception=exception, traceback=content["traceback"])


def _read(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Any:
    with cluster.fetched(record.paths.outcome, ended.most) as path:
        try:
            return payload.read(str(path), pickling.load, sha256=ended.sha256)
        except Exception as error:
            raise ResultError(
                f"the value can't be read: {type(error).__name__}: {error}", where=f"{where(record)}, {path}"
            ) from error
