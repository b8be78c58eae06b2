"""The files of a run on its cluster that home reads: the outcome, and the files that the function has written."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.output_files import CHANGED, BroughtFiles, bring_home
from slurm_ray_flow.core.errors import ResultError
from slurm_ray_flow.core.outputs import WrittenFile, matching_files, printable_name, summary
from slurm_ray_flow.core.run import CallEnd, Outcome, RunRecord, error_of
from slurm_ray_flow.remote.shared import failures, payload, pickling
from slurm_ray_flow.tasks.run import where

Warn = Callable[[str], object]


def files_of(record: RunRecord, cluster: Cluster, warn: Warn) -> tuple[PurePosixPath, list[WrittenFile]]:
    """The working directory of a run's newest try, and the files that the function has written there."""
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
        to: the folder that the files go to; None for the folder beside the script.
        overwrite: whether to overwrite files that were changed at home since the launch.
        warn: receives a text for each file that was not brought, with the reason.

    Raises:
        OptionError: a pattern leads out of the working directory.
        SyncError: the files can't be written at home, or rsync fails.
        ConnectionFailed: the cluster does not answer.
    """
    matching_files((), patterns)  # refuses a wrong pattern before the cluster is asked
    folder, files = files_of(record, cluster, warn)
    for pattern in patterns:
        if not matching_files(files, [pattern]):
            warn(f"the run has written no {pattern!r}; it has written {summary(files) or 'no files at all'}")
    target, changed_since = to or Path(record.home_folder or Path.cwd()), float("inf") if overwrite else record.created
    brought = bring_home(cluster, folder, matching_files(files, patterns), target, changed_since)
    for path, why in brought.left.items():
        warn(f"{printable_name(path)} stays with the run: {why}")
    if CHANGED in brought.left.values():
        command = shlex.join(["srf", "fetch", record.run_id[:8], *patterns, "--overwrite"])
        warn(f"`{command}` brings it over what is here")
    return brought


def read_outcome(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Outcome:
    """The outcome of a call that has ended.

    Raises:
        RunError: there is no outcome; the error's type says why.
    """
    if ended.outcome is None:
        raise error_of(ended.cause or "crashed", ended.message, where(record))
    content = _read_payload(record, ended, cluster)
    if ended.outcome == "value":
        return Outcome(value=content["value"])
    exception = failures.unpack(content)
    if ended.cause != "user_code":
        raise error_of(ended.cause or "crashed", ended.message, where(record)) from exception
    return Outcome(exception=exception, traceback=content["traceback"])


def _read_payload(record: RunRecord, ended: CallEnd, cluster: Cluster) -> Any:
    with cluster.fetched(record.paths.outcome, ended.most) as path:
        try:
            return payload.read(str(path), pickling.load, sha256=ended.sha256)
        except Exception as error:
            raise ResultError(
                f"the value can't be read: {type(error).__name__}: {error}", where=f"{where(record)}, {path}"
            ) from error
