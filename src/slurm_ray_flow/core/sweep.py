"""The sweep's decision about a run that Prefect shows as active while its launching process is gone. Pure functions."""

from __future__ import annotations

import dataclasses
from enum import Enum

from slurm_ray_flow.core.run import RunRecord, RunState
from slurm_ray_flow.core.run_state import Evidence, RunFacts, RunStatus, run_state

TAG = "slurm-ray-flow"
"""The tag of every flow run of this package, by which the sweep and the automation find them."""
PREFECT_STATES = {
    RunState.SUCCEEDED: "COMPLETED",
    RunState.FAILED: "FAILED",
    RunState.CANCELLED: "CANCELLED",
    RunState.LOST: "CRASHED",
}


class Action(Enum):
    """What to do about a run."""

    LEAVE = "leave"
    """Do nothing: this host can't know the run's state."""
    KEEP = "keep"
    """The run lives: send a heartbeat, without which Prefect's automation ends the run."""
    CANCEL = "cancel"
    """Ask the run's head to cancel the run; a later sweep finds its end."""
    END = "end"
    """Give the flow run its final state."""


@dataclasses.dataclass(frozen=True)
class SweepDecision:
    """What to do about a run; `state` (a type of Prefect's), `cause` and `message` belong to `END`."""

    action: Action
    state: str = ""
    cause: str = ""
    message: str = ""

    @property
    def text(self) -> str:
        """The message that Prefect shows beside the state."""
        return ": ".join(filter(None, (self.cause, self.message)))


def decide(facts: RunFacts, *, flow_state: str) -> SweepDecision:
    """Decide about one run. A launch that lives sees to the run's end itself.

    A run whose launch is on another host, and so can't be seen, is kept if its head lives, and is never ended.

    Args:
        facts: the facts of the run.
        flow_state: the type of the flow run's state, as Prefect writes it ("RUNNING", "CANCELLING", ...).
    """
    going_on = SweepDecision(Action.CANCEL if flow_state == "CANCELLING" else Action.KEEP)
    if facts.launch_alive:
        return SweepDecision(Action.KEEP)
    if facts.launch_alive is None:
        return going_on if facts.head_alive and not facts.record.waiting else SweepDecision(Action.LEAVE)
    status = run_state(facts)
    silent = status.evidence is Evidence.SILENCE
    if status.settled:
        return _cancelled() if going_on.action is Action.CANCEL and not silent else _ended(facts.record, status)
    if silent:
        return SweepDecision(Action.LEAVE if facts.silent is None else Action.KEEP)
    return going_on


def _cancelled() -> SweepDecision:
    message = "The run was cancelled after the process that launched it had gone."
    return SweepDecision(Action.END, "CANCELLED", message=message)


def _ended(record: RunRecord, status: RunStatus) -> SweepDecision:
    message = status.message
    if status.state is RunState.SUCCEEDED:
        message = "The launching process is gone; the value waits: `srf attach` gets it."
    elif status.state is RunState.LOST:
        message += f" (run {record.run_id} on {record.cluster})."
    return SweepDecision(Action.END, PREFECT_STATES[status.state], status.cause, message)


def slot_is_free(facts: RunFacts | None) -> bool:
    """Whether the slot of a run whose launch is gone can be given back: the run has ended for good."""
    return facts is None or run_state(dataclasses.replace(facts, launch_alive=False)).settled
