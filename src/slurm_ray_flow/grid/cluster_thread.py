"""The thread that follows all pilots of one cluster: it records results, hands bundles over, and sees pilots end."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.cluster_report import Load
from slurm_ray_flow.core.errors import ConnectionFailed, GridError, SlurmRayFlowError
from slurm_ray_flow.core.grid.model import (
    Bundle,
    Campaign,
    CampaignState,
    ItemOutcome,
    ItemRetry,
    ItemState,
    after_failure,
)
from slurm_ray_flow.core.grid.work import (
    MOST_BUNDLES,
    bundle_size,
    is_too_long,
    items_ahead,
    items_in_time,
    too_long_text,
)
from slurm_ray_flow.core.items import ItemResult, parse_results
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.grid import clock
from slurm_ray_flow.grid.outcome_log import Frame
from slurm_ray_flow.remote.shared.items import CRASHED, ERROR, INTERRUPTED, RESULTS, VALUE
from slurm_ray_flow.remote.shared.protocol import TRY

if TYPE_CHECKING:
    from slurm_ray_flow.grid.engine import Engine
    from slurm_ray_flow.grid.live_pilot import LivePilot

ROUND_SECONDS = 0.2
"""The least seconds of a round, so that results are recorded some hundreds at a time."""
WATCH_SECONDS = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a cluster that does not answer is asked again."""
GIVE_UP_SECONDS = 3600.0
"""After so long a silence others get the items of its pilots; a second outcome of an item changes nothing."""
TIME_LIMIT = "time_limit"
"""The kind that a result gets here whose item is too long for its pilots."""
LOAD_SECONDS = 30.0
"""Seconds between two looks at how much of the cluster is in use."""
STATES = {
    VALUE: ItemState.SUCCEEDED,
    ERROR: ItemState.FAILED,
    CRASHED: ItemState.CRASHED,
    TIME_LIMIT: ItemState.FAILED,
    INTERRUPTED: ItemState.WAITING,
}
log = logging.getLogger("slurm_ray_flow.grid")


class ClusterThread(threading.Thread):
    """Follows the pilots of one cluster until none is left."""

    def __init__(self, engine: Engine, cluster: str) -> None:
        super().__init__(name=f"srf-grid-{cluster}", daemon=True)
        self._engine, self._cluster = engine, cluster
        self._silent_since: float | None = 0.0
        self._load_thread: threading.Thread | None = None
        self._load_due = 0.0

    def run(self) -> None:
        """Make rounds until the cluster has no pilot."""
        pause = FIRST_PAUSE
        while not self._engine.stopped.is_set():
            pilots = [pilot for pilot in list(self._engine.pilots.values()) if pilot.cluster == self._cluster]
            if not pilots:
                self._engine.troubles.forget(self._cluster)
                return
            began, least = time.monotonic(), FIRST_PAUSE
            try:
                if self._answers(pilots):
                    pause, least = FIRST_PAUSE, ROUND_SECONDS
                    self._engine.troubles.end(self._cluster)
                else:
                    pause, least = min(2 * pause, LONGEST_PAUSE), pause
            except GridError as error:  # nothing is lost: what could not be written is read anew
                self._engine.troubles.note(self._cluster, error)
            except Exception:
                log.exception("a round on %s failed; it goes on", self._cluster)
            self._engine.stopped.wait(max(least - (time.monotonic() - began), 0.0))
        self._close_ended()

    def _answers(self, pilots: list[LivePilot]) -> bool:
        """Make a round; says whether the cluster has answered.

        Raises:
            GridError: something can't be written at home.
        """
        try:
            self._round(asked := [pilot for pilot in pilots if pilot.run_id and pilot.has_record])
        except GridError:
            raise
        except SlurmRayFlowError as error:
            self._note_trouble(pilots, error)
            return False
        self._note_answer(asked)
        return True

    def _close_ended(self) -> None:
        """At the engine's end, let pilots of ended campaigns end, too: nobody else would tell them for some time."""
        for pilot in [pilot for pilot in list(self._engine.pilots.values()) if pilot.cluster == self._cluster]:
            with contextlib.suppress(SlurmRayFlowError):
                if pilot.running and not pilot.closed and _has_ended(self._engine.store.campaign(pilot.campaign)):
                    pilot.stream(cluster_of(pilot.record)).close()
                    pilot.closed = True

    def _note_trouble(self, pilots: Iterable[LivePilot], error: SlurmRayFlowError) -> None:
        """Note that the cluster does not answer; after a long time others get what its pilots have."""
        log.warning("%s: %s", self._cluster, error.what)
        self._silent_since = self._silent_since or time.monotonic()
        for campaign in {pilot.campaign for pilot in pilots}:
            self._engine.note(campaign, self._cluster, "warning", "connection", type(error).__name__, str(error))
        if isinstance(error, ConnectionFailed) and time.monotonic() - self._silent_since >= GIVE_UP_SECONDS:
            for pilot in pilots:
                self._engine.give_up(pilot)

    def _note_answer(self, pilots: Collection[LivePilot]) -> None:
        """Close the events of a cluster that answers again, also those of an earlier process."""
        if not pilots or self._silent_since is None:
            return
        self._silent_since = None
        for campaign in {pilot.campaign for pilot in pilots}:
            self._engine.note_answer(campaign, self._cluster)

    def _round(self, pilots: Sequence[LivePilot]) -> None:
        if not pilots:
            return
        cluster = cluster_of(pilots[0].record)
        self._look_at_load(cluster)
        watched = [
            (pilot.paths.items / RESULTS, pilot.offset) if pilot.running else (pilot.paths.events, pilot.events_offset)
            for pilot in pilots
        ]
        seconds = ROUND_SECONDS if any(pilot.is_between_items for pilot in pilots) else WATCH_SECONDS
        for pilot, data in zip(pilots, cluster.watch(watched, seconds), strict=True):
            if pilot.running:
                self._record(pilot, data, cluster)
            elif pilot.note_events(data):
                self._engine.note_start(pilot)
        for pilot in pilots:
            if pilot.running:
                self._hand_over(pilot, cluster)
            if (status := pilot.end(cluster)) is not None:
                self._record_rest(pilot, cluster)
                with contextlib.suppress(SlurmRayFlowError):  # they go with the run's folder then
                    pilot.stream(cluster).remove_values()
                self._engine.end_pilot(pilot, status)

    def _look_at_load(self, cluster: Cluster) -> None:
        """Ask now and then how much of the cluster is in use, beside the rounds: a scheduler may take long to say."""
        if time.monotonic() < self._load_due or (self._load_thread and self._load_thread.is_alive()):
            return
        self._load_due = time.monotonic() + LOAD_SECONDS
        self._load_thread = threading.Thread(target=self._note_load, args=(cluster,), daemon=True)
        self._load_thread.start()

    def _note_load(self, cluster: Cluster) -> None:
        try:
            scheduler = cluster.scheduler
            load = scheduler.load() if scheduler is not None else Load(**cluster.ask("machines.load"))
        except SlurmRayFlowError as error:
            log.info("%s does not say how much of it is in use: %s", self._cluster, error.what)
        else:
            self._engine.governor.note_load(self._cluster, load)

    def _record_rest(self, pilot: LivePilot, cluster: Cluster) -> None:
        """Record the results that are left of a pilot that has ended; half a last line is none."""
        path = pilot.paths.items / RESULTS
        while data := cluster.read(path, pilot.offset):
            if not self._record(pilot, data, cluster):
                return

    def _record(self, pilot: LivePilot, data: bytes, cluster: Cluster) -> int:
        """Record new results of a pilot; gives how many bytes of them are done with."""
        results, taken = parse_results(data)
        if not taken:
            return 0
        offset = pilot.offset + taken
        first = list({result.item: result for result in reversed(results)}.values())[::-1]
        values = list(pilot.stream(cluster).values(first))
        campaign = self._engine.store.campaign(pilot.campaign)
        with self._engine.writing(campaign) as outcome_log:
            ended = self._engine.store.ended_among(campaign.id, [result.item for result in first])
            new = [(result, value) for result, value in zip(first, values, strict=True) if result.item not in ended]
            new = self._with_too_long(pilot, campaign, new)
            retries, finals = self._sorted_by_verdict(campaign, new)
            places = outcome_log.append(
                Frame(result.item, int(state), result.seconds, value) for result, state, value in finals
            )
            outcome_log.sync()
            outcomes = [
                ItemOutcome(result.item, result.bundle, state, result.seconds, *place, _error_of(result), result.log)
                for (result, state, _), place in zip(finals, places, strict=True)
            ]
            recorded = self._engine.store.record(
                pilot.id, campaign.id, offset, outcomes, retries, outcome_log.size, clock.now()
            )
        pilot.offset = offset
        fresh = [result for result, _ in new]
        counts = collections.Counter(result.bundle for result in first)
        pilot.note_durations(counts, [result.seconds for result in fresh])
        self._engine.governor.note_results(pilot, campaign, fresh, self._failed_before(campaign, fresh))
        self._note_failures(campaign, fresh)
        duplicates = len(results) - len(new)
        if duplicates and campaign.state is not CampaignState.CANCELLED:
            text = (
                "items had an outcome too late, which changed nothing: they ran twice, since their cluster was silent, "
            )
            text += "or a person had cancelled them"
            self._engine.note(campaign.id, self._cluster, "info", "duplicate", "", text, duplicates)
        if recorded.ended:
            self._engine.wake()
        return taken

    def _with_too_long(
        self, pilot: LivePilot, campaign: Campaign, results: Sequence[tuple[ItemResult, bytes | None]]
    ) -> list[tuple[ItemResult, bytes | None]]:
        """The results, in which interrupted items that are too long for their pilots have that as their outcome."""
        items = [result.item for result, _ in results if result.kind == INTERRUPTED]
        counts = self._engine.store.interruptions(campaign.id, items) if items else {}
        known: list[tuple[ItemResult, bytes | None]] = []
        for result, value in results:
            times = counts.get(result.item, 0)
            if result.kind == INTERRUPTED and is_too_long(result.seconds, pilot.seconds, times):
                text = too_long_text(result.seconds, pilot.seconds, times + 1)
                data = json.dumps({"cause": TIME_LIMIT, "message": text}).encode()
                known.append((result._replace(kind=TIME_LIMIT, message=text.replace(TRY, " Try: ")), data))
            else:
                known.append((result, value))
        return known

    def _failed_before(self, campaign: Campaign, results: Iterable[ItemResult]) -> set[int]:
        """The items among recorded results whose failure was not the first one."""
        failed = [result.item for result in results if result.kind != VALUE]
        attempts = self._engine.store.attempts(campaign.id, failed) if failed else {}
        return {item for item, (count, _) in attempts.items() if count > 1}

    def _sorted_by_verdict(
        self, campaign: Campaign, results: Sequence[tuple[ItemResult, bytes | None]]
    ) -> tuple[list[ItemRetry], list[tuple[ItemResult, ItemState, bytes]]]:
        """Those that are tried again, and those that have their outcome."""
        states = [state_of(result, value) for result, value in results]
        judged = [(result, state, value or b"") for (result, value), state in zip(results, states, strict=True)]
        failed = [result.item for result, state, _ in judged if state is not ItemState.SUCCEEDED]
        attempts = self._engine.store.attempts(campaign.id, failed) if failed else {}
        retries, finals = [], []
        for result, state, value in judged:
            not_before = 0.0 if state is ItemState.WAITING else None
            crashed = state is ItemState.CRASHED
            if state in {ItemState.FAILED, ItemState.CRASHED} and result.kind != TIME_LIMIT:
                earlier, crashes = attempts.get(result.item, (0, 0))
                not_before = after_failure(earlier, crashes, crashed, campaign.retries, now=clock.now())
            if not_before is None:
                finals.append((result, state, value))
                continue
            retries.append(_retry_of(result, crashed, not_before))
        return retries, finals

    def _note_failures(self, campaign: Campaign, results: Iterable[ItemResult]) -> None:
        """Note failures as events, grouped by the type and the place of the error."""
        groups: dict[tuple[str, str], list[ItemResult]] = collections.defaultdict(list)
        for result in results:
            if result.kind not in {VALUE, INTERRUPTED}:
                groups[result.kind, result.group].append(result)
        for (kind, group), members in groups.items():
            message = members[0].message or group
            self._engine.note(campaign.id, self._cluster, "error", kind, group, message, len(members))

    def _hand_over(self, pilot: LivePilot, cluster: Cluster) -> None:
        """Place bundles for a pilot that has less work than it should have; close the stream of an ended campaign."""
        campaign = self._engine.store.campaign(pilot.campaign)
        if _has_ended(campaign) and not pilot.closed:
            pilot.stream(cluster).close()
            pilot.closed = True
        if campaign.state is CampaignState.PAUSED:
            self._withdraw(pilot, cluster, list(pilot.bundles))
        self._place(pilot, cluster)
        if pilot.yielding and not campaign.state.final:
            self._end_turn(pilot, cluster)
        if campaign.state is not CampaignState.ACTIVE or pilot.stopping or pilot.yielding or pilot.closed:
            return
        if pilot.is_asked_for_bundles:
            self._withdraw(pilot, cluster, sorted(pilot.bundles)[len(pilot.bundles) // 2 :])
            return
        running = [other for other in self._engine.pilots_of(campaign.id) if other.running]
        wanted, size = self._wanted(pilot, campaign, len(running))
        if not wanted or (pilot.outstanding > wanted - size and pilot.outstanding >= pilot.workers):
            return
        self._lease(pilot, campaign, wanted, size)
        self._place(pilot, cluster)
        if campaign.waiting and not pilot.outstanding and self._engine.store.has_interrupted(campaign.id):
            pilot.yielding = True  # they need a pilot with all its time before it
        if not campaign.unleased and pilot.outstanding < pilot.workers:
            _ask_others(pilot, running)

    def _wanted(self, pilot: LivePilot, campaign: Campaign, running: int) -> tuple[int, int]:
        """How many items a pilot should have, and how many in a bundle; one without the time for any ends its turn."""
        wanted = items_ahead(pilot.mean_seconds, pilot.workers, campaign.total - campaign.ended, running)
        size = bundle_size(pilot.mean_seconds, pilot.workers)
        if campaign.is_open and running < campaign.max_pilots:  # a further pilot gets what this one can't begin
            wanted, size = min(wanted, pilot.workers), pilot.workers
        bounds = [self._engine.governor.most_items(pilot, campaign)]
        if pilot.has_begun:  # its first items have all the time that a pilot can give
            bounds.append(items_in_time(pilot.mean_seconds, pilot.workers, pilot.seconds_left(clock.now())))
            pilot.yielding = not bounds[-1] and not pilot.outstanding
        for most in bounds:
            if most is not None:
                wanted, size = min(wanted, most), min(size, max(most, 1))
        return wanted, size

    def _end_turn(self, pilot: LivePilot, cluster: Cluster) -> None:
        """Have a pilot end after what it has in hand."""
        self._withdraw(pilot, cluster, list(pilot.bundles))
        if not pilot.closed:
            pilot.stream(cluster).close()
            pilot.closed = True

    def _lease(self, pilot: LivePilot, campaign: Campaign, wanted: int, size: int) -> None:
        """Lease bundles of some size until a pilot has the wanted number of items, or there are no more."""
        if not campaign.unleased:
            return
        reader = self._engine.arguments(campaign)
        while pilot.outstanding < wanted and len(pilot.unplaced) < MOST_BUNDLES:
            bundle = self._next_bundle(pilot, campaign, size)
            if bundle is None:
                return
            pilot.has_begun = True
            self._engine.governor.note_lease(pilot, campaign, bundle)
            pilot.bundles[bundle.id] = bundle.size
            pilot.unplaced[bundle.id] = reader.bytes_of(bundle)

    def _next_bundle(self, pilot: LivePilot, campaign: Campaign, size: int) -> Bundle | None:
        """Lease a bundle: first items that a time limit has ended before, where the pilot has the time for them."""
        store, now = self._engine.store, clock.now()
        first = None
        if campaign.waiting and pilot.takes_interrupted(now):
            first = store.lease_interrupted(pilot.id, campaign.id, pilot.workers)
        return first or store.lease(pilot.id, campaign.id, size, now)

    def _withdraw(self, pilot: LivePilot, cluster: Cluster, bundles: list[int]) -> None:
        """Take bundles back that the pilot has not taken; their items wait again. Each bundle is asked for once."""
        pilot.is_asked_for_bundles = False
        asked = [number for number in bundles if number not in pilot.kept]
        if not asked:
            return
        withdrawn = pilot.stream(cluster).withdraw(asked)
        counts = {number: pilot.bundles.pop(number, 0) for number in withdrawn}
        self._engine.governor.note_returned(pilot, counts)
        for number in withdrawn:
            pilot.unplaced.pop(number, None)
        pilot.kept.update(set(asked) - set(withdrawn))
        if self._engine.store.give_back(withdrawn):
            self._engine.wake()

    def _place(self, pilot: LivePilot, cluster: Cluster) -> None:
        if pilot.unplaced:
            pilot.stream(cluster).place(pilot.unplaced)
            pilot.unplaced = {}


def _has_ended(campaign: Campaign) -> bool:
    """Whether a campaign's pilots get no more items; those of a cancelled one are ended otherwise."""
    has_all = campaign.state.final or (campaign.ended >= campaign.total and not campaign.is_open)
    return has_all and campaign.state is not CampaignState.CANCELLED


def _ask_others(pilot: LivePilot, running: Iterable[LivePilot]) -> None:
    """Have the busiest pilot give up half of what it has not begun, for an idle one's next rounds."""
    others = [other for other in running if other is not pilot and other.withdrawable > 1]
    if busiest := max(others, key=lambda other: other.outstanding, default=None):
        busiest.is_asked_for_bundles = True


def state_of(result: ItemResult, value: bytes | None) -> ItemState:
    """What became of an item; one whose bytes are damaged (None) counts as crashed, whatever its line says."""
    return ItemState.CRASHED if value is None else STATES[result.kind]


def _retry_of(result: ItemResult, crashed: bool, not_before: float) -> ItemRetry:
    """The retry of an item; one that was interrupted waits for a pilot with all its time."""
    interrupted = result.kind == INTERRUPTED
    error = _error_of(result)
    if interrupted:
        error = (
            f"its pilot's time limit ended it after {format_duration(result.seconds)}; it begins first in another one"
        )
    return ItemRetry(
        result.item, result.bundle, crashed, not_before, result.seconds, error, result.log, interrupted=interrupted
    )


def _error_of(result: ItemResult) -> str:
    """What went wrong, in a line."""
    return result.message or result.group
