"""The engine: it asks clusters for pilots, hands items to them, and records outcomes, each exactly once.

A thread for each cluster follows its pilots (`cluster_thread.py`); the control loop is here. All state is in the
store, so that the engine may be killed at any time: the next one goes on with the pilots that it finds there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ClusterShare
from slurm_ray_flow.core.grid.work import DEAD_STARTS, Demand, pilots_to_request
from slurm_ray_flow.core.run import RunState
from slurm_ray_flow.core.run_state import Evidence, RunStatus
from slurm_ray_flow.grid.arguments import ArgumentReader
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.live_pilot import LivePilot
from slurm_ray_flow.grid.outcome_log import OutcomeLog
from slurm_ray_flow.grid.store import Store
from slurm_ray_flow.tasks.run import release

CONTROL_SECONDS = 1.0
"""Seconds between two looks at what campaigns need."""
log = logging.getLogger("slurm_ray_flow.grid")


Launcher = Callable[[Campaign, str, Callable[[str], None]], None]
"""Launches the pilot of a campaign on a cluster, and returns when it has ended; tells the id of its run first."""


class Engine:
    """The engine of one home.

    Args:
        store: the grid's tables.
        launch: launches a pilot.
        workers: how many items a pilot of a campaign runs at a time on a cluster.
    """

    def __init__(self, store: Store, launch: Launcher, workers: Callable[[str, str], int]) -> None:
        self.store = store
        self._launch, self._workers = launch, workers
        self.pilots: dict[int, LivePilot] = {}
        self.stopped, self._woken = threading.Event(), threading.Event()
        self._arguments: dict[str, ArgumentReader] = {}
        self._logs: dict[str, OutcomeLog] = {}
        self._log_locks: dict[str, threading.Lock] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._dead_starts: dict[tuple[str, str], int] = {}

    def run(self) -> None:
        """Work until `stop`."""
        self._find_pilots()
        while not self.stopped.is_set():
            try:
                self._control()
            except SlurmRayFlowError as error:
                log.error("%s", error)
            except Exception:
                log.exception("the control loop failed; it goes on")
            self._woken.wait(CONTROL_SECONDS)
            self._woken.clear()

    def stop(self) -> None:
        """End the loops; pilots go on."""
        self.stopped.set()
        self._woken.set()
        for thread in list(self._threads.values()):
            thread.join(10)

    def wake(self) -> None:
        """Look at what campaigns need at once."""
        self._woken.set()

    def cancel(self, campaign_id: str, reason: str = "a person cancelled it") -> None:
        """Begin no more items of a campaign, and end those that run."""
        self.store.cancel(campaign_id, time.time(), reason)

    def resume(self, campaign: Campaign) -> None:
        """Go on with a paused campaign, also on clusters that were closed to it."""
        for share in campaign.clusters:
            self.store.set_cluster(campaign.id, share.cluster, state="open", reason="")
        self.store.set_campaign_state(campaign.id, CampaignState.ACTIVE)

    def arguments(self, campaign: Campaign) -> ArgumentReader:
        """The arguments of a campaign's items."""
        with self._lock:
            if campaign.id not in self._arguments:
                self._arguments[campaign.id] = ArgumentReader(CampaignFolder(campaign.id).path)
            return self._arguments[campaign.id]

    @contextlib.contextmanager
    def writing(self, campaign: Campaign) -> Iterator[OutcomeLog]:
        """The outcome log of a campaign, for one thread at a time, to be recorded in the block.

        After an error in the block it is opened anew at its committed size, which cuts off what was not recorded.
        """
        with self._lock:
            lock = self._log_locks.setdefault(campaign.id, threading.Lock())
        with lock:
            outcome_log = self._logs.pop(campaign.id, None)
            if outcome_log is None:
                size = self.store.campaign(campaign.id).outcomes_size
                outcome_log = OutcomeLog(CampaignFolder(campaign.id).outcomes, size)
            try:
                yield outcome_log
            except BaseException:
                outcome_log.close()
                raise
            self._logs[campaign.id] = outcome_log

    def _close_files(self, active: set[str]) -> None:
        """Close the files of campaigns that have ended."""
        for campaign_id in self._arguments.keys() - active:
            del self._arguments[campaign_id]
        for campaign_id in self._logs.keys() - active:
            with self._log_locks[campaign_id]:
                if outcome_log := self._logs.pop(campaign_id, None):
                    outcome_log.close()

    def pilots_of(self, campaign_id: str) -> list[LivePilot]:
        """The pilots of a campaign that have not ended."""
        return [pilot for pilot in list(self.pilots.values()) if pilot.campaign == campaign_id]

    def _find_pilots(self) -> None:
        """Go on with the pilots of an earlier process."""
        for pilot in self.store.pilots(live=True):
            bundles = self.store.live_bundles(pilot.id)
            if pilot.run_id:
                found = self.pilots[pilot.id] = LivePilot(pilot, bundles=bundles)
                reader = self.arguments(self.store.campaign(pilot.campaign))
                found.unplaced = {bundle.id: reader.bytes_of(bundle) for bundle in bundles}
            else:
                self.store.give_back([bundle.id for bundle in bundles])
                self.store.update_pilot(pilot.id, state="ended", cause="lost", ended_at=time.time())

    def _control(self) -> None:
        states = [CampaignState.ACTIVE, CampaignState.PAUSED, CampaignState.CANCELLED]
        for campaign in (campaigns := self.store.campaigns(states)):
            pilots = self.pilots_of(campaign.id)
            if campaign.state is CampaignState.ACTIVE:
                self._settle(campaign)
                for share in campaign.clusters:
                    self._request_pilots(campaign, share)
            elif campaign.state is CampaignState.CANCELLED and pilots:
                self._end_pilots(pilots)
            elif campaign.state is CampaignState.CANCELLED and campaign.ended < campaign.total:
                self.store.finish_cancel(campaign.id, time.time())
        for pilot in list(self.pilots.values()):
            if not pilot.run_id and pilot.thread is not None and not pilot.thread.is_alive():
                self.end_pilot(pilot, _status_without_run(pilot.failure))
        for name in {pilot.cluster for pilot in list(self.pilots.values())}:
            self._follow(name)
        with_pilots = {pilot.campaign for pilot in list(self.pilots.values())}
        self._close_files(with_pilots | {campaign.id for campaign in campaigns if not campaign.state.final})

    def _settle(self, campaign: Campaign) -> None:
        """End a campaign that has all outcomes, or too many failures."""
        if campaign.ended >= campaign.total:
            state = CampaignState.FAILED if campaign.failed else CampaignState.SUCCEEDED
            reason = f"{campaign.failed} of {campaign.total} items failed" if campaign.failed else ""
            self.store.set_campaign_state(campaign.id, state, reason=reason, ended_at=time.time())
        elif campaign.max_failures is not None and campaign.failed > campaign.max_failures:
            reason = f"{campaign.failed} items failed, more than max_failures={campaign.max_failures}"
            self.cancel(campaign.id, reason)
        elif campaign.clusters and all(share.state != "open" for share in campaign.clusters):
            reason = "; ".join(f"{share.cluster}: {share.reason}" for share in campaign.clusters)
            self.store.set_campaign_state(campaign.id, CampaignState.PAUSED, reason=reason)

    def _request_pilots(self, campaign: Campaign, share: ClusterShare) -> None:
        if share.state != "open":
            return
        workers = self._workers(campaign.id, share.cluster)
        pilots = [pilot for pilot in self.pilots_of(campaign.id) if pilot.cluster == share.cluster]
        known = [pilot.mean_seconds for pilot in pilots if pilot.mean_seconds is not None]
        demand = Demand(
            left=campaign.total - campaign.ended,
            unleased=campaign.unleased,
            mean_seconds=sum(known) / len(known) if known else share.mean_seconds,
            workers=workers,
            pilots=len(pilots),
            waiting=sum(not pilot.running for pilot in pilots),
            most=int(share.options.get("max_pilots") or campaign.max_pilots),
            clusters=sum(one.state == "open" for one in campaign.clusters),
        )
        for _ in range(pilots_to_request(demand)):
            self._start_pilot(campaign, share.cluster, workers)

    def _start_pilot(self, campaign: Campaign, cluster: str, workers: int) -> None:
        number = self.store.add_pilot(campaign.id, cluster, workers, time.time())
        (row,) = [pilot for pilot in self.store.pilots(campaign.id, live=True) if pilot.id == number]

        def note_run_id(run_id: str) -> None:
            self.store.update_pilot(number, run_id=run_id, state="waiting")
            live.run_id = run_id

        def work() -> None:
            try:
                self._launch(campaign, cluster, note_run_id)
            except SlurmRayFlowError as error:  # its run's record has it, where there is one
                log.warning("pilot %s of campaign %s on %s: %s", number, campaign.id[:8], cluster, error.what)
                live.failure = error
            except Exception as error:
                log.exception("the launch of pilot %s failed", number)
                live.failure = error

        thread = threading.Thread(target=work, name=f"srf-pilot-{number}", daemon=True)
        live = self.pilots[number] = LivePilot(row, thread)
        thread.start()

    def _follow(self, cluster: str) -> None:
        from slurm_ray_flow.grid.cluster_thread import ClusterThread

        thread = self._threads.get(cluster)
        if thread is None or not thread.is_alive():
            self._threads[cluster] = thread = ClusterThread(self, cluster)
            thread.start()

    def end_pilot(self, pilot: LivePilot, status: RunStatus) -> None:
        """Note the end of a pilot whose results are recorded; its items without an outcome wait again."""
        returned = self.store.give_back([bundle.id for bundle in self.store.live_bundles(pilot.id)])
        cause = status.cause if status.cause or status.state.value == "succeeded" else status.state.value
        self.store.update_pilot(
            pilot.id, state="ended", cause=cause, message=status.message[:2000], ended_at=time.time()
        )
        del self.pilots[pilot.id]
        place = (pilot.campaign, pilot.cluster)
        if pilot.outcomes or not cause:
            self._dead_starts[place] = 0
        elif self.store.campaign(pilot.campaign).state is CampaignState.ACTIVE:
            self._note_dead_start(place, cause, status.message)
        if returned:
            log.info("pilot %s has ended (%s); %s items wait again", pilot.id, cause or "done", returned)
        self.wake()

    def _note_dead_start(self, place: tuple[str, str], cause: str, message: str) -> None:
        """Close a cluster to a campaign after pilots that ended before they had an outcome."""
        campaign, cluster = place
        self._dead_starts[place] = self._dead_starts.get(place, 0) + 1
        text = f"a pilot ended without an outcome ({cause}): {message}".strip(": ")
        self.store.add_event(campaign, cluster, "error", "pilot", cause, text[:2000], 1, time.time())
        if self._dead_starts[place] >= DEAD_STARTS or cause in {"rejected", "environment"}:
            self._dead_starts[place] = 0
            self.store.set_cluster(campaign, cluster, state="paused", reason=text[:2000])

    def _end_pilots(self, pilots: Iterable[LivePilot]) -> None:
        """End the runs of a cancelled campaign's pilots, each in a thread, since a cluster may take long to answer."""
        for pilot in pilots:
            if not pilot.stopping and pilot.run_id:
                pilot.stopping = True
                threading.Thread(target=self._release, args=(pilot,), daemon=True).start()

    def _release(self, pilot: LivePilot) -> None:
        try:
            record = pilot.record
            if not release(record, cluster_of(record)):
                pilot.stopping = False
        except SlurmRayFlowError as error:
            log.warning("pilot %s can't be ended yet: %s", pilot.id, error.what)
            self.stopped.wait(5)
            pilot.stopping = False


def _status_without_run(failure: BaseException | None) -> RunStatus:
    """The end of a pilot whose launch failed before it was a run."""
    cause = getattr(failure, "cause", "") or "rejected"
    message = str(failure) if failure else "its launch ended before it began"
    return RunStatus(RunState.FAILED, Evidence.LAUNCH, cause, message)
