"""The thread that follows all pilots of one cluster: it records results, hands bundles over, and sees pilots end."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ItemOutcome, ItemRetry, ItemState, after_failure
from slurm_ray_flow.core.grid.work import MOST_BUNDLES, bundle_size, items_ahead
from slurm_ray_flow.core.items import ItemResult, parse_results
from slurm_ray_flow.grid.outcome_log import Frame
from slurm_ray_flow.remote.shared.items import RESULTS, VALUE

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
STATES = {VALUE: ItemState.SUCCEEDED, "error": ItemState.FAILED, "crashed": ItemState.CRASHED}
log = logging.getLogger("slurm_ray_flow.grid")


class ClusterThread(threading.Thread):
    """Follows the pilots of one cluster until none is left."""

    def __init__(self, engine: Engine, cluster: str) -> None:
        super().__init__(name=f"srf-grid-{cluster}", daemon=True)
        self._engine, self._cluster = engine, cluster
        self._silent_since: float | None = 0.0

    def run(self) -> None:
        """Make rounds until the cluster has no pilot."""
        pause = FIRST_PAUSE
        while not self._engine.stopped.is_set():
            pilots = [pilot for pilot in list(self._engine.pilots.values()) if pilot.cluster == self._cluster]
            if not pilots:
                return
            began = time.monotonic()
            try:
                self._round(asked := [pilot for pilot in pilots if pilot.run_id and pilot.has_record])
                self._note_answer(asked)
                pause, least = FIRST_PAUSE, ROUND_SECONDS
            except SlurmRayFlowError as error:
                self._note_trouble(pilots, error)
                pause, least = min(2 * pause, LONGEST_PAUSE), pause
            except Exception:
                log.exception("a round on %s failed; it goes on", self._cluster)
                least = FIRST_PAUSE
            self._engine.stopped.wait(max(least - (time.monotonic() - began), 0.0))

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
        watched = [
            (pilot.paths.items / RESULTS, pilot.offset) if pilot.running else (pilot.paths.events, pilot.events_offset)
            for pilot in pilots
        ]
        for pilot, data in zip(pilots, cluster.watch(watched, WATCH_SECONDS), strict=True):
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
                pilot.id, campaign.id, offset, outcomes, retries, outcome_log.size, time.time()
            )
        pilot.offset = offset
        fresh = [result for result, _ in new]
        counts = collections.Counter(result.bundle for result in fresh)
        pilot.note_durations(counts, [result.seconds for result in fresh])
        self._engine.governor.note_results(pilot, campaign, fresh, self._failed_before(campaign, fresh))
        self._note_failures(campaign, fresh)
        duplicates = len(results) - len(new)
        if duplicates and campaign.state is not CampaignState.CANCELLED:
            text = "items had a second outcome, which changed nothing: they ran again while their cluster was silent"
            self._engine.note(campaign.id, self._cluster, "info", "duplicate", "", text, duplicates)
        if recorded.ended:
            self._engine.wake()
        return taken

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
            not_before = None
            crashed = state is ItemState.CRASHED
            if state is not ItemState.SUCCEEDED:
                earlier, crashes = attempts.get(result.item, (0, 0))
                not_before = after_failure(earlier, crashes, crashed, campaign.retries, now=time.time())
            if not_before is None:
                finals.append((result, state, value))
                continue
            error = _error_of(result)
            retries.append(
                ItemRetry(result.item, result.bundle, crashed, not_before, result.seconds, error, result.log)
            )
        return retries, finals

    def _note_failures(self, campaign: Campaign, results: Iterable[ItemResult]) -> None:
        """Note failures as events, grouped by the type and the place of the error."""
        groups: dict[tuple[str, str], list[ItemResult]] = collections.defaultdict(list)
        for result in results:
            if result.kind != VALUE:
                groups[result.kind, result.group].append(result)
        for (kind, group), members in groups.items():
            message = members[0].message or group
            self._engine.note(campaign.id, self._cluster, "error", kind, group, message, len(members))

    def _hand_over(self, pilot: LivePilot, cluster: Cluster) -> None:
        """Place bundles for a pilot that has less work than it should have; close the stream of an ended campaign."""
        campaign = self._engine.store.campaign(pilot.campaign)
        if campaign.state.final and not pilot.closed and campaign.state is not CampaignState.CANCELLED:
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
        wanted = items_ahead(pilot.mean_seconds, pilot.workers, campaign.total - campaign.ended, len(running))
        size = bundle_size(pilot.mean_seconds, pilot.workers)
        if (most := self._engine.governor.most_items(pilot, campaign)) is not None:
            wanted, size = min(wanted, most), min(size, max(most, 1))
            if not wanted:
                return
        if pilot.outstanding > wanted - size and pilot.outstanding >= pilot.workers:
            return
        self._lease(pilot, campaign, wanted, size)
        self._place(pilot, cluster)
        if not campaign.unleased and pilot.outstanding < pilot.workers:
            _ask_others(pilot, running)

    def _end_turn(self, pilot: LivePilot, cluster: Cluster) -> None:
        """Have a pilot end after what it has in hand."""
        self._withdraw(pilot, cluster, list(pilot.bundles))
        if not pilot.closed:
            pilot.stream(cluster).close()
            pilot.closed = True

    def _lease(self, pilot: LivePilot, campaign: Campaign, wanted: int, size: int) -> None:
        """Lease bundles of some size until a pilot has the wanted number of items, or there are no more."""
        reader = self._engine.arguments(campaign)
        while pilot.outstanding < wanted and len(pilot.unplaced) < MOST_BUNDLES:
            bundle = self._engine.store.lease(pilot.id, campaign.id, size, time.time())
            if bundle is None:
                return
            self._engine.governor.note_lease(pilot, campaign, bundle)
            pilot.bundles[bundle.id] = bundle.size
            pilot.unplaced[bundle.id] = reader.bytes_of(bundle)

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


def _ask_others(pilot: LivePilot, running: Iterable[LivePilot]) -> None:
    """Have the busiest pilot give up half of what it has not begun, for an idle one's next rounds."""
    others = [other for other in running if other is not pilot and other.withdrawable > 1]
    if busiest := max(others, key=lambda other: other.outstanding, default=None):
        busiest.is_asked_for_bundles = True


def state_of(result: ItemResult, value: bytes | None) -> ItemState:
    """What became of an item; one whose bytes are damaged (None) counts as crashed, whatever its line says."""
    return ItemState.CRASHED if value is None else STATES[result.kind]


def _error_of(result: ItemResult) -> str:
    """What went wrong, in a line."""
    return result.message or result.group
