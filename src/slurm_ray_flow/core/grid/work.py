"""How much work a pilot gets, and how many pilots a campaign asks for. Pure functions."""

from __future__ import annotations

import dataclasses
import math

from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.remote.shared.protocol import TRY

BUNDLE_SECONDS = 2.0
"""The work of one bundle, for all workers of a pilot: a bundle that a pilot has taken can't be given to another one."""
AHEAD_SECONDS = 120.0
"""The work that waits at a pilot, which goes on with it while home is away; others can have what it has not taken."""
LARGEST_BUNDLE, MOST_BUNDLES = 2_000, 20
"""The most items of a bundle, and the most bundles that are placed at a time."""
FIRST_BUNDLES = 1
"""The bundles of a pilot whose items' duration is not known yet: an item for each worker goes first."""
NEARLY = 0.9
"""An item that ran for this part of a pilot's time had all of it: some goes by before the pilot's first items begin."""
MOST_INTERRUPTIONS = 3
"""The time limits of so many pilots may end an item."""
PILOT_SECONDS = 60.0
"""The least work of a pilot for which a further one is worth its start."""


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a campaign has to do on one cluster.

    Attributes:
        left: items without an outcome, on all clusters.
        unleased: those among them that no pilot has.
        mean_seconds: the mean duration of an item; None where it is not known.
        workers: the items that one pilot runs at a time.
        pilots: its pilots on this cluster that have not ended.
        waiting: those among them that have not begun.
        most: the most pilots that it may have there.
        clusters: the clusters of the campaign that take pilots.
        at_once: whether somebody waits for each item: a further pilot is worth its start for the shortest ones.
    """

    left: int
    unleased: int
    mean_seconds: float | None
    workers: int
    pilots: int
    waiting: int
    most: int
    clusters: int = 1
    at_once: bool = False


def bundle_size(mean_seconds: float | None, workers: int) -> int:
    """The number of items of a pilot's next bundle."""
    if mean_seconds is None:
        return workers
    return _clamp(workers * BUNDLE_SECONDS / max(mean_seconds, 1e-6), workers, LARGEST_BUNDLE)


def items_ahead(mean_seconds: float | None, workers: int, left: int, pilots: int) -> int:
    """How many items a pilot should have that have not ended.

    Args:
        mean_seconds: the mean duration of an item at this pilot; None where it is not known.
        workers: the items that it runs at a time.
        left: the campaign's items without an outcome.
        pilots: the campaign's pilots that run.
    """
    if mean_seconds is None:
        return FIRST_BUNDLES * workers
    wanted = _clamp(workers * AHEAD_SECONDS / max(mean_seconds, 1e-6), workers, MOST_BUNDLES * LARGEST_BUNDLE)
    return max(min(wanted, math.ceil(left / max(pilots, 1))), workers)


def items_in_time(mean_seconds: float | None, workers: int, seconds_left: float) -> int:
    """How many items a pilot can still end in the time that it has left."""
    if seconds_left <= 0:
        return 0
    if mean_seconds is None:
        return workers
    return workers * int(min(seconds_left / max(mean_seconds, 1e-6), LARGEST_BUNDLE * MOST_BUNDLES))


def is_too_long(seconds: float, pilot_seconds: float | None, interruptions: int) -> bool:
    """Whether an item that a pilot's time limit has ended just now is not to be tried again.

    Args:
        seconds: for how long it ran.
        pilot_seconds: the time that the pilot had from its start on; None where that is not known.
        interruptions: how many pilots' time limits had ended it before.
    """
    had_all = pilot_seconds is not None and seconds >= NEARLY * pilot_seconds
    return had_all or interruptions + 1 >= MOST_INTERRUPTIONS


def too_long_text(seconds: float, pilot_seconds: float | None, times: int) -> str:
    """What to say of an item that is too long."""
    limit = f" of {format_duration(pilot_seconds)}" if pilot_seconds is not None else ""
    often = f" They have ended it {times} times." if times > 1 else ""
    what = f"The item had run for {format_duration(seconds)} when the time limit{limit} of its pilot ended it.{often}"
    return what + TRY + "begin a campaign with a longer time_limit=, in a partition that allows it"


def pilots_wanted(demand: Demand) -> int:
    """How many pilots a campaign could use on a cluster in all, where the duration of its items is known."""
    if demand.at_once:
        return min(demand.most, math.ceil(demand.left / max(demand.workers * demand.clusters, 1)))
    seconds = demand.left * (demand.mean_seconds or 0.0) / max(demand.workers, 1) / max(demand.clusters, 1)
    return min(demand.most, math.ceil(seconds / PILOT_SECONDS))


def new_mean(mean_seconds: float | None, durations: list[float]) -> float | None:
    """The mean duration of items, in which new ones count more than old ones."""
    if not durations:
        return mean_seconds
    newest = sum(durations) / len(durations)
    if mean_seconds is None:
        return newest
    weight = min(len(durations) / (len(durations) + 20), 0.5)
    return (1 - weight) * mean_seconds + weight * newest


def _clamp(value: float, least: int, most: int) -> int:
    return int(min(max(value, least), most))
