"""What becomes of a run that Prefect shows as active while the process that launched it is gone.

Nothing here looks at the world: `verdict` takes what was found out and says what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from slurm_ray_flow.core.run import CallEnd, RunRecord

TAG = "slurm-ray-flow"
"""The tag of every flow run of ours: what the sweep and the automation look for."""

SILENT = 86400.0
"""So long a cluster may give no answer until the runs on it that nobody waits for count as lost."""

HeadState = Literal["alive", "dead", "absent", "unknown"]
"""Of the program on the cluster: `absent` has not said yet that it lives, `unknown` can't be asked from here."""


@dataclass(frozen=True)
class ClusterState:
    """What the cluster says about one run.

    Attributes:
        head: the program that runs it.
        ended: how its call ended.
        silent: for how many seconds the cluster has given no answer; None where it is not asked from here.
    """

    head: HeadState
    ended: CallEnd | None = None
    silent: float | None = None


class Action(Enum):
    """What to do about a run."""

    LEAVE = "leave"
    """Nothing: it can't be known from here."""
    KEEP = "keep"
    """It lives: say so to Prefect, whose automation ends runs that nobody has heard of."""
    CANCEL = "cancel"
    """Ask its head to cancel it, and come back."""
    END = "end"
    """Give its flow run the final state that stands beside."""


@dataclass(frozen=True)
class SweepDecision:
    """What to do about a run; `state` (a type of Prefect's) and `message` belong to `END`."""

    action: Action
    state: str = ""
    message: str = ""


def verdict(
    record: RunRecord, cluster: ClusterState, *, flow_state: str, launch_alive: bool | None, now: float
) -> SweepDecision:
    """Judges one run.

    Args:
        record: what its launch left.
        cluster: what its cluster says.
        flow_state: the type of its flow run's state, as Prefect writes it ("RUNNING", "CANCELLING", ...).
        launch_alive: whether the process that launched it still lives; then that one sees to its end. None where it
            is another host's and can't be seen: then what lives is kept, and nothing is ended.
        now: seconds since 1970.
    """
    cancelling = flow_state == "CANCELLING"
    if launch_alive is not False:
        return SweepDecision(Action.KEEP) if launch_alive else _launched_elsewhere(record, cluster, cancelling)
    if record.waiting:  # nothing was submitted yet, and those behind it in the line must not wait for it
        return _cancelled() if cancelling else _lost(record, ClusterState("absent"))
    if cluster.head == "unknown" and cluster.ended is None:
        return _unanswered(record, cluster)
    if cluster.ended is not None:
        return _cancelled() if cancelling else _ended(cluster.ended)
    if cluster.head == "alive" or (cluster.head == "absent" and record.is_new(now)):
        return SweepDecision(Action.CANCEL if cancelling else Action.KEEP)
    return _cancelled() if cancelling else _lost(record, cluster)


def _launched_elsewhere(record: RunRecord, cluster: ClusterState, cancelling: bool) -> SweepDecision:
    if cluster.head != "alive" or record.waiting:
        return SweepDecision(Action.LEAVE)
    return SweepDecision(Action.CANCEL if cancelling else Action.KEEP)


def slot_is_free(record: RunRecord | None, cluster: ClusterState, now: float) -> bool:
    """Whether the run that took a slot of a shared server, and whose launch is gone, has no use for it any more."""
    if record is None or record.waiting or cluster.ended is not None or cluster.head == "dead":
        return True
    return cluster.head == "absent" and not record.is_new(now)


def _unanswered(record: RunRecord, cluster: ClusterState) -> SweepDecision:
    """A closed laptop or a broken network ends no run; but nobody waits for an answer for ever."""
    if cluster.silent is None:
        return SweepDecision(Action.LEAVE)
    if cluster.silent < SILENT:
        return SweepDecision(Action.KEEP)
    what = "the launching process is gone, and the cluster has not answered for a day"
    return SweepDecision(Action.END, "CRASHED", f"lost: {what} (run {record.run_id} on {record.cluster}).")


def _cancelled() -> SweepDecision:
    return SweepDecision(Action.END, "CANCELLED", "The run was cancelled after the process that launched it had gone.")


def _ended(ended: CallEnd) -> SweepDecision:
    if ended.outcome == "value":
        return SweepDecision(
            Action.END, "COMPLETED", "The launching process is gone; the value waits: `srf attach` gets it."
        )
    cause = ended.cause or ("user_code" if ended.outcome == "exception" else "crashed")
    message = f"{cause}: {ended.message}" if ended.message else cause
    return SweepDecision(Action.END, "CANCELLED" if cause == "cancelled" else "FAILED", message)


def _lost(record: RunRecord, cluster: ClusterState) -> SweepDecision:
    if cluster.head == "absent":
        what = "the launching process ended before the run had started"
    else:
        what = "the launching process and the program on the cluster are gone, without an outcome"
    return SweepDecision(Action.END, "CRASHED", f"lost: {what} (run {record.run_id} on {record.cluster}).")
