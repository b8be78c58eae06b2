"""A pilot that has not ended, as the engine knows it."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.item_stream import ItemStream
from slurm_ray_flow.blocks.run_facts import ask, status_of
from slurm_ray_flow.core.errors import UnknownRunError
from slurm_ray_flow.core.grid.fairness import Claim
from slurm_ray_flow.core.grid.model import Bundle, Campaign, Pilot
from slurm_ray_flow.core.grid.work import NEARLY, new_mean
from slurm_ray_flow.core.run import Event, RunPaths, RunRecord, RunState, find_event, parse_events
from slurm_ray_flow.core.run_state import Evidence, RunStatus
from slurm_ray_flow.grid import clock
from slurm_ray_flow.remote.shared.items import Item

BETWEEN_SECONDS = 10.0
"""For so long a pilot without items is looked at more often."""
VERDICT_SECONDS = 5.0
"""Seconds between two questions whether a pilot lives whose launch another process began."""
PATIENCE_SECONDS = 120.0
"""Seconds for which the record of a new pilot may be missing."""


class LivePilot:
    """A pilot with its bundles.

    Attributes:
        id, campaign, cluster: its number, and the names of its campaign and cluster.
        run_id: its run; "" before it has one.
        workers: the items that it runs at a time.
        running: whether it takes bundles.
        offset: how far its results are recorded.
        mean_seconds: the mean duration of its items; None where it is not known.
        bundles: the items without an outcome in each of its bundles, by the bundles' numbers.
        unplaced: bundles whose files may not be on the cluster yet.
        thread: the launch of this process; None for a pilot that an earlier process launched.
        kept: bundles that it had taken when they were asked back.
        is_asked_for_bundles: whether another pilot needs some of its items.
        created: when it was asked for, in seconds since 1970.
        has_begun: whether it has had an item.
        running_since: when it began to take bundles, in seconds since 1970; None for not yet.
        seconds: the time that it had for items from its start on; None for no limit, or before its start.
        yielding: whether it ends after what it has in hand, since another campaign waits for its place.
        stopping: whether it gets no more bundles.
        closed: whether its stream of items is closed.
        outcomes: how many it has had.
        failure: the error of its launch in this process.
    """

    def __init__(self, pilot: Pilot, thread: threading.Thread | None = None, bundles: Sequence[Bundle] = ()) -> None:
        self.id, self.campaign, self.cluster, self.run_id = pilot.id, pilot.campaign, pilot.cluster, pilot.run_id
        self.workers, self.offset, self.running = pilot.workers, pilot.results_offset, pilot.state == "running"
        self.mean_seconds: float | None = None
        self.bundles = {bundle.id: bundle.size - bundle.ended for bundle in bundles}
        self.unplaced: dict[int, Sequence[Item]] = {}
        self.kept: set[int] = set()
        self.is_asked_for_bundles = False
        self.thread, self.stopping, self.closed = thread, False, False
        self.created, self.running_since = pilot.created, pilot.started_at if self.running else None
        self.seconds = pilot.seconds
        self.has_begun = bool(self.bundles or pilot.succeeded or pilot.failed)
        self.yielding = False
        self.outcomes = pilot.succeeded + pilot.failed
        self.failure: BaseException | None = None
        self._paths: RunPaths | None = None
        self._began, self._asked_at, self._events_offset = time.monotonic(), 0.0, 0
        self._last_outcome = 0.0

    @property
    def record(self) -> RunRecord:
        """The record of its run.

        Raises:
            UnknownRunError: there is none.
        """
        return store.find_record(self.run_id)

    @property
    def has_record(self) -> bool:
        """Whether its run has a record yet."""
        return self._paths is not None or store.known_record(self.run_id) is not None

    @property
    def paths(self) -> RunPaths:
        """The files of its run, which has one try: they are always the same.

        Raises:
            UnknownRunError: the run has no record yet.
        """
        if self._paths is None:
            self._paths = self.record.paths
        return self._paths

    def stream(self, cluster: Cluster) -> ItemStream:
        """Its items."""
        return ItemStream(cluster, self.paths)

    @property
    def outstanding(self) -> int:
        """The items that it has, and that have not ended."""
        return sum(self.bundles.values())

    @property
    def is_between_items(self) -> bool:
        """Whether it has just done all that it had: whoever waits for that may have more for it at once."""
        return self.running and not self.outstanding and time.monotonic() - self._last_outcome < BETWEEN_SECONDS

    @property
    def withdrawable(self) -> int:
        """The bundles that it may not have taken."""
        return len(self.bundles.keys() - self.kept)

    def note_events(self, data: bytes) -> bool:
        """Read new events of its run; says whether it begins to take bundles."""
        events, length = parse_events(data)
        self._events_offset += length
        if started := find_event(events, "call_started"):
            self.running, self.seconds = True, _seconds_of(started)
        if self.running and self.running_since is None:
            self.running_since = clock.now()
        return self.running

    def seconds_left(self, now: float) -> float:
        """Its time that is left for items; infinite without a limit."""
        if self.seconds is None or self.running_since is None:
            return math.inf
        return self.running_since + self.seconds - now

    def takes_interrupted(self, now: float) -> bool:
        """Whether an item would begin at once, and have nearly all the time that a pilot has at its start."""
        return self.seconds is None or (not self.outstanding and self.seconds_left(now) >= NEARLY * self.seconds)

    @property
    def events_offset(self) -> int:
        return self._events_offset

    def note_durations(self, counts: Mapping[int, int], durations: list[float]) -> None:
        """Note ended items.

        Args:
            counts: how many of each bundle.
            durations: their seconds.
        """
        self.mean_seconds = new_mean(self.mean_seconds, durations)
        self.outcomes += len(durations)
        self._last_outcome = time.monotonic()
        for number, count in counts.items():
            if number in self.bundles:
                self.bundles[number] = max(self.bundles[number] - count, 0)
                if not self.bundles[number]:
                    del self.bundles[number]

    def end(self, cluster: Cluster) -> RunStatus | None:
        """How its run has ended; None while it goes on.

        A cluster is asked only where no launch of this process follows the run.

        Raises:
            SlurmRayFlowError: the cluster does not answer.
        """
        if self.thread is not None and self.thread.is_alive():
            return None
        if self.thread is None and time.monotonic() - self._asked_at < VERDICT_SECONDS:
            return None
        self.thread, self._asked_at = None, time.monotonic()
        try:
            record = self.record
        except UnknownRunError:
            if time.monotonic() - self._began < PATIENCE_SECONDS:
                return None
            return RunStatus(RunState.LOST, Evidence.RECORD, "lost", "its launch left no record")
        status = status_of(ask(record, cluster))
        return status if status.state.final else None


def _seconds_of(started: Event) -> float | None:
    """The time that a pilot has, by the event of its start; None for no limit, and where an older head wrote it."""
    seconds = started.get("seconds_left")
    return float(seconds) if isinstance(seconds, int | float) else None


@dataclasses.dataclass
class Wish:
    """What a campaign has and wants on a cluster now."""

    campaign: Campaign
    claim: Claim
    pilots: list[LivePilot]
    max_queued: int

    @property
    def queued(self) -> list[LivePilot]:
        """Its pilots that have not begun."""
        return [pilot for pilot in self.pilots if not pilot.running]


def oldest(pilots: Iterable[LivePilot], before: float) -> LivePilot | None:
    """The pilot that has run for longest, of those that have begun before some time and keep their places."""
    begun = [
        (pilot.running_since, pilot.id, pilot)
        for pilot in pilots
        if not pilot.yielding and pilot.running_since is not None and pilot.running_since <= before
    ]
    return min(begun)[2] if begun else None
