"""What becomes of a run that Prefect shows as active while the process that launched it is gone.

Nothing here looks at the world: `verdict` takes what was found out and says what to do about it.
"""

from __future__ import annotations

import dataclasses
from enum import Enum

from slurm_ray_flow.core.run import RunRecord, RunState
from slurm_ray_flow.core.run_state import Evidence, RunFacts, RunStatus, run_state

TAG = "slurm-ray-flow"
"""The tag of every flow run of ours: what the sweep and the automation look for."""
PREFECT_STATES = {
    RunState.SUCCEEDED: "COMPLETED",
    RunState.FAILED: "FAILED",
    RunState.CANCELLED: "CANCELLED",
    RunState.LOST: "CRASHED",
}


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


def verdict(facts: RunFacts, *, flow_state: str) -> SweepDecision:
    """Judges one run. Where its launch lives, that one sees to its end.

    Where the launch is another host's and can't be seen, what lives is kept, and nothing is ended.

    Args:
        facts: what is known of it.
        flow_state: the type of its flow run's state, as Prefect writes it ("RUNNING", "CANCELLING", ...).
    """
    on = SweepDecision(Action.CANCEL if flow_state == "CANCELLING" else Action.KEEP)
    if facts.launch_alive:
        return SweepDecision(Action.KEEP)
    if facts.launch_alive is None:
        return on if facts.head_alive and not facts.record.waiting else SweepDecision(Action.LEAVE)
    status = run_state(facts)
    silent = status.evidence is Evidence.SILENCE
    if status.settled:
        return _cancelled() if on.action is Action.CANCEL and not silent else _ended(facts.record, status)
    if silent:
        return SweepDecision(Action.LEAVE if facts.silent is None else Action.KEEP)
    return on


def _cancelled() -> SweepDecision:
    what = "The run was cancelled after the process that launched it had gone."
    return SweepDecision(Action.END, "CANCELLED", message=what)


def _ended(record: RunRecord, status: RunStatus) -> SweepDecision:
    message = status.message
    if status.state is RunState.SUCCEEDED:
        message = "The launching process is gone; the value waits: `srf attach` gets it."
    elif status.state is RunState.LOST:
        message += f" (run {record.run_id} on {record.cluster})."
    return SweepDecision(Action.END, PREFECT_STATES[status.state], status.cause, message)


def slot_is_free(facts: RunFacts | None) -> bool:
    """Whether the run that took a slot of a shared server, and whose launch is gone, has no use for it any more."""
    return facts is None or run_state(dataclasses.replace(facts, launch_alive=False)).settled
