"""Bring the value, or the failure, home."""

from __future__ import annotations

from typing import Any

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.errors import ResultError
from slurm_ray_flow.core.outcome import Ended, Outcome
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.run import RunRecord, error_of
from slurm_ray_flow.remote import failures, payload, pickling
from slurm_ray_flow.tasks.policy import step
from slurm_ray_flow.tasks.run import where


@step()
def fetch_outcome(record: RunRecord, ended: Ended, cluster: Cluster) -> Outcome:
    """Read the outcome, checked against the digest that the events hold.

    Raises:
        RunError: there is none; its type says why.
    """
    reporter().step("fetch_outcome")
    return read_outcome(record, ended, cluster)


def outcome_of(record: RunRecord, ended: Ended, cluster: Cluster) -> Outcome:
    """The outcome of a call that has ended; where it has left none, there is no step to take.

    Raises:
        RunError: there is none; its type says why.
    """
    read = read_outcome if ended.outcome is None else fetch_outcome
    return read(record, ended, cluster)


def read_outcome(record: RunRecord, ended: Ended, cluster: Cluster) -> Outcome:
    """The outcome of a call that has ended.

    Raises:
        RunError: there is none; its type says why.
    """
    if ended.outcome is None:
        raise error_of(ended.cause or "crashed", ended.message, where(record))
    found = _read(record, ended, cluster)
    if ended.outcome == "value":
        return Outcome(value=found["value"])
    exception = failures.unpack(found)
    if ended.cause != "user_code":
        raise error_of(ended.cause or "crashed", ended.message, where(record)) from exception
    return Outcome(exception=exception, traceback=found["traceback"])


def _read(record: RunRecord, ended: Ended, cluster: Cluster) -> Any:
    with cluster.fetched(record.paths.outcome, ended.most) as path:
        try:
            return payload.read(str(path), pickling.load, sha256=ended.sha256)
        except Exception as error:
            raise ResultError(
                f"the value can't be read: {type(error).__name__}: {error}", where=f"{where(record)}, {path}"
            ) from error
