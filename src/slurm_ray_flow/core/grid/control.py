"""How many pilots a cluster is asked for: feedback control by how soon they start, by refusals, and by load. Pure.

The reference is how many pilots may wait in the cluster's queue at a time. It doubles when all that were asked for have
started within a minute, and halves when the cluster refuses or preempts them, is loaded by others, or lets them wait.
An idle cluster fills within a minute; a busy one has one pilot of ours in its queue; one that refuses is asked at
pauses that grow to an hour.
"""

from __future__ import annotations

import dataclasses
import math

from slurm_ray_flow.core.cluster_report import Load
from slurm_ray_flow.core.grid.work import Demand, pilots_wanted

SOON_SECONDS = 60.0
"""A pilot that starts within so long has started at once."""
LATE_SECONDS = 600.0
"""A cluster that lets a pilot wait for longer is busy."""
FAST_SECONDS, SLOW_SECONDS = 5.0, 30.0
"""Seconds between two decisions: while pilots start at once, and else."""
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 3600.0
"""Seconds for which a cluster that has refused is not asked; doubled each time."""
LOAD_LIMIT = 0.8
"""The part of a cluster that others use from which it is left to them: one pilot waits there at a time."""
MAX_QUEUED = 16
"""The most pilots of a user that wait in a cluster's queue, where the user has chosen no other number."""
DEAD_STARTS = 3
"""The pilots in a row that ended soon after their start, without an outcome, after which a campaign stops there."""
WAIT_WEIGHT = 0.3
"""The weight of the latest wait in the mean wait."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """What is seen of a user's pilots on one cluster at a time.

    Attributes:
        now: seconds, of any clock that goes forward.
        queued: pilots that were asked for and have not begun.
        running: those that take bundles.
        need: how many more could be used, over the user's campaigns.
        unserved: campaigns among them that have no pilot there.
        room: how many more the cluster's cap allows; None for any number.
        max_queued: the most that may wait.
        longest_wait: for how long the oldest of the queued ones has waited, in seconds.
        waits: the seconds for which those waited that have begun since the last observation.
        rejected, preempted: pilots that the cluster refused, and that it took away, since then.
        load: the part of the cluster that is in use by others, from 0; None for not known.
    """

    now: float
    queued: int
    running: int
    need: int
    unserved: int = 0
    room: int | None = None
    max_queued: int = MAX_QUEUED
    longest_wait: float = 0.0
    waits: tuple[float, ...] = ()
    rejected: int = 0
    preempted: int = 0
    load: float | None = None


@dataclasses.dataclass(frozen=True)
class ControlState:
    """What the control of a user's pilots on one cluster remembers.

    Attributes:
        reference: how many may wait at a time.
        was_bound: whether the reference was what kept the last decision from asking for more. Only then a quick start
            says that it should grow; without this it would grow beyond all use, and flood the cluster later.
        begun: how many have begun since the reference was changed, or was last no bound; 0 where one of them was late.
        mean_wait: what a pilot waits, in seconds; None where none has begun yet.
        refusals: in a row.
        pause_until: the time before which the cluster is not asked.
        next_at: the time of the next decision.
    """

    reference: int = 1
    was_bound: bool = False
    begun: int = 0
    mean_wait: float | None = None
    refusals: int = 0
    pause_until: float = 0.0
    next_at: float = 0.0


def step(state: ControlState, seen: Observation) -> tuple[ControlState, int]:
    """Note what was seen, and decide how many pilots to ask for now.

    Returns:
        The state for the next step, and how many pilots to ask for.
    """
    state = _noted(state, seen)
    if seen.now < state.pause_until:
        return state, 0
    is_due = seen.now >= state.next_at or (seen.unserved > 0 and seen.queued == 0)
    if not is_due:
        return state, 0
    is_loaded = seen.load is not None and seen.load > LOAD_LIMIT
    state = _adapted(state, seen, is_loaded)
    allowed = max(min(state.reference, seen.max_queued, 1 if is_loaded else state.reference) - seen.queued, 0)
    possible = seen.need if seen.room is None else min(seen.need, max(seen.room, 0))
    was_bound = possible > allowed and state.reference < seen.max_queued
    quick = (state.mean_wait is None or state.mean_wait <= SOON_SECONDS) and seen.longest_wait <= SOON_SECONDS
    pause = FAST_SECONDS if quick and not (is_loaded or seen.preempted) else SLOW_SECONDS
    begun = state.begun if was_bound else 0
    state = dataclasses.replace(state, next_at=seen.now + pause, was_bound=was_bound, begun=begun)
    return state, min(allowed, possible)


def share_of_others(load: Load | None, own_cores: float) -> float | None:
    """The part of a cluster that others use; None where that is not known.

    Args:
        load: what the cluster says of itself, our pilots included.
        own_cores: the cores of our pilots there.
    """
    if load is None or not load.cpus or load.busy is None:
        return None
    return max(load.busy - own_cores, 0.0) / load.cpus


def _noted(state: ControlState, seen: Observation) -> ControlState:
    """The waits, and a cluster that refuses."""
    mean = state.mean_wait
    for wait in seen.waits:
        mean = wait if mean is None else (1 - WAIT_WEIGHT) * mean + WAIT_WEIGHT * wait
    soon = all(wait <= SOON_SECONDS for wait in seen.waits)
    state = dataclasses.replace(state, mean_wait=mean, begun=state.begun + len(seen.waits) if soon else 0)
    if seen.rejected:
        pause = min(FIRST_PAUSE * 2 ** min(state.refusals, 20), LONGEST_PAUSE)
        halved = dataclasses.replace(state, reference=max(state.reference // 2, 1), was_bound=False, begun=0)
        return dataclasses.replace(halved, refusals=state.refusals + 1, pause_until=seen.now + pause)
    return dataclasses.replace(state, refusals=0) if seen.waits else state


def _adapted(state: ControlState, seen: Observation, is_loaded: bool) -> ControlState:
    """The reference at a decision."""
    reference = state.reference
    if seen.preempted or is_loaded or seen.longest_wait > LATE_SECONDS:
        reference //= 2
    elif state.was_bound and state.begun >= reference and seen.longest_wait <= SOON_SECONDS:
        reference *= 2
    reference = min(max(reference, 1), max(seen.max_queued, 1))
    return dataclasses.replace(state, reference=reference, begun=state.begun if reference == state.reference else 0)


def pilots_needed(demand: Demand, mean_wait: float | None) -> int:
    """How many more pilots a campaign could use on a cluster.

    Where they wait for long, those that run will have done a part of the work by then, which needs no further ones.
    """
    if demand.at_once and demand.pilots:  # what another pilot has not begun counts, too
        return max(pilots_wanted(demand) - demand.pilots, 0)
    if not demand.unleased or demand.pilots >= demand.most:
        return 0
    if not demand.pilots:
        return 1
    if demand.mean_seconds is None:
        return 0
    running = demand.pilots - demand.waiting
    done = math.floor(running * min(mean_wait or 0.0, LATE_SECONDS) * demand.workers / max(demand.mean_seconds, 1e-6))
    left = max(demand.left - done, 0)
    return max(pilots_wanted(dataclasses.replace(demand, left=left)) - demand.pilots, 0)


@dataclasses.dataclass(frozen=True)
class Starts:
    """The starts of a campaign's pilots on a cluster: how many in a row were dead within a minute."""

    dead: int = 0

    def ended(self, outcomes: int, seconds: float | None, is_failure: bool) -> Starts:
        """Note the end of a pilot.

        Args:
            outcomes: how many it has had.
            seconds: for how long it ran; None where it did not begin.
            is_failure: whether it ended by a failure.
        """
        if outcomes or not is_failure:
            return Starts()
        lived = seconds is not None and seconds > SOON_SECONDS
        return self if lived else Starts(self.dead + 1)

    @property
    def too_many(self) -> bool:
        """Whether to ask for no more."""
        return self.dead >= DEAD_STARTS
