"""The engine: it asks clusters for pilots, hands items to them, and records outcomes, each exactly once.

A thread for each cluster follows its pilots (`cluster_thread.py`); the control loop is here. All state is in the
store, so that the engine may be killed at any time: the next one goes on with the pilots that it finds there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator

from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.errors import (
    GridError,
    GridTokenError,
    NotAllowedError,
    SlurmRayFlowError,
    UnknownCampaignError,
)
from slurm_ray_flow.core.grid.fairness import check_test_mode
from slurm_ray_flow.core.grid.model import CAMPAIGN, Campaign, CampaignState, User
from slurm_ray_flow.core.grid.troubles import Verdict
from slurm_ray_flow.core.prefect_events import (
    CAMPAIGN_BEGAN,
    CAMPAIGN_ENDED,
    CAMPAIGN_PAUSED,
    CLUSTER_BACK,
    CLUSTER_DRAINED,
    CLUSTER_QUARANTINED,
    CLUSTER_SILENT,
    ITEMS_FAILED,
    ITEMS_TWICE,
    PILOT_FAILED,
    PrefectEvent,
    grid_event,
)
from slurm_ray_flow.core.run import RunState
from slurm_ray_flow.core.run_state import Evidence, RunStatus
from slurm_ray_flow.grid import clock, clusters
from slurm_ray_flow.grid.announcing import Announcer, HomeTroubles, send_to_prefect
from slurm_ray_flow.grid.arguments import ArgumentReader
from slurm_ray_flow.grid.campaign_folder import CampaignFolder, sweep_folders
from slurm_ray_flow.grid.governor import Governor
from slurm_ray_flow.grid.live_pilot import LivePilot
from slurm_ray_flow.grid.maps import Maps
from slurm_ray_flow.grid.outcome_log import OutcomeLog
from slurm_ray_flow.grid.store import Store
from slurm_ray_flow.tasks.run import release

CONTROL_SECONDS = 1.0
"""Seconds between two looks at what campaigns need."""
SWEEP_SECONDS = 600.0
"""Seconds between two looks for folders of campaigns that there are not."""
log = logging.getLogger("slurm_ray_flow.grid")


_EVENTS = {
    "quarantined": CLUSTER_QUARANTINED,
    "drained": CLUSTER_DRAINED,
    "connection": CLUSTER_SILENT,
    "pilot": PILOT_FAILED,
    "epilogue": PILOT_FAILED,
    "duplicate": ITEMS_TWICE,
    "home": CAMPAIGN_PAUSED,
}
"""What Prefect is told of events by their codes; all others are failures of items."""
Launcher = Callable[[Campaign, str, Callable[[str], None]], None]
"""Launches the pilot of a campaign on a cluster, and returns when it has ended; tells the id of its run first."""


class Engine:
    """The engine of one home.

    Args:
        store: the grid's tables.
        launch: launches a pilot.
        workers: how many items a pilot of a campaign runs at a time on a cluster.
        cores: how many cores it has there; one for each item without this.
        cap: how many pilots all campaigns together may have on a cluster; None for any number.
        send: sends an event to Prefect.
        identify: gives the engine's user, where several share the store.
    """

    def __init__(
        self,
        store: Store,
        launch: Launcher,
        workers: Callable[[str, str], int],
        cores: Callable[[str, str], int] | None = None,
        cap: Callable[[str], int | None] = lambda _: None,
        send: Callable[[PrefectEvent], None] = send_to_prefect,
        identify: Callable[[], User | None] = lambda: None,
    ) -> None:
        self.store = store
        self._launch, self._workers, self._identify = launch, workers, identify
        self._user: User | None = None
        self._refusal: GridError | None = None
        self._closed: set[tuple[str, str]] = set()
        self.governor = Governor(store, workers, cores or workers, cap)
        self._announcer = Announcer(send)
        self.pilots: dict[int, LivePilot] = {}
        self.troubles = HomeTroubles(self)
        self._sweep_due = 0.0
        self.stopped, self._woken = threading.Event(), threading.Event()
        self.maps = Maps(store, self.stopped, lambda: self._user.name if self._user else getpass.getuser())
        self._arguments: dict[str, ArgumentReader] = {}
        self._logs: dict[str, OutcomeLog] = {}
        self._log_locks: dict[str, threading.Lock] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    @property
    def user(self) -> User | None:
        """Whose engine this is, where several users share the store.

        Raises:
            GridTokenError: its token is wrong or was revoked.
            NotAllowedError: its user has an engine elsewhere.
        """
        if self._refusal is not None:
            raise self._refusal
        return self._user

    def identify(self) -> None:
        """Look whose engine this is, and note it as that user's only one.

        Raises:
            GridTokenError, NotAllowedError: as for `user`. Until this is mended the engine begins nothing.
        """
        try:
            self._user, self._refusal = self._identify(), None
        except (GridTokenError, NotAllowedError) as error:
            self._refusal = error
            raise

    def owns(self, campaign: Campaign) -> bool:
        """Whether this engine goes on with a campaign: it is its user's, and its files are at this home."""
        is_mine = self._user is None or campaign.user == self._user.name
        return is_mine and (self.store.is_file or CampaignFolder(campaign.id).is_here)

    def check_owned(self, campaign: Campaign) -> None:
        """See that the files of a campaign are at this home.

        Raises:
            NotAllowedError: they are not.
        """
        if not self.owns(campaign):
            what = f"the files of campaign {campaign.id[:8]} are at another home of {campaign.user}"
            raise NotAllowedError(what, advice=f"only {campaign.user}'s own engine there can do this")

    def run(self) -> None:
        """Work until `stop`."""
        self.maps.start()
        are_found = False
        while not self.stopped.is_set():
            try:
                are_found = are_found or self._find_pilots()
                if self._is_known():
                    self._control()
                self.troubles.end("")
            except GridError as error:
                self.troubles.note("", error)
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
        with contextlib.suppress(SlurmRayFlowError):
            self.governor.keep()
        self._announcer.stop()
        self.maps.stop()

    def wake(self) -> None:
        """Look at what campaigns need at once."""
        self._woken.set()

    def add(self, campaign: Campaign) -> None:
        """Begin a campaign.

        Raises:
            GridError: it is in test mode, and not small.
        """
        check_test_mode(campaign.options, campaign.total)
        self.store.add_campaign(dataclasses.replace(campaign, created=clock.now()))
        names = ", ".join(share.cluster for share in campaign.clusters)
        self.tell_of(campaign.id, CAMPAIGN_BEGAN, f"{campaign.total} items on {names}")
        clusters.note(self, self.store.campaign(campaign.id))
        self.wake()

    def cancel(self, campaign_id: str, reason: str = "a person cancelled it") -> None:
        """Begin no more items of a campaign, and end those that run."""
        if self.store.cancel(campaign_id, clock.now(), reason):
            self.tell_of(campaign_id, CAMPAIGN_ENDED, f"cancelled: {reason}", level="warning")

    def pause(self, campaign_id: str, reason: str = "a person paused it") -> None:
        """Begin no more items of a campaign until it is resumed."""
        if self.store.set_campaign_state(campaign_id, CampaignState.PAUSED, reason=reason):
            self.tell_of(campaign_id, CAMPAIGN_PAUSED, reason, level="warning")

    def resume(self, campaign: Campaign) -> None:
        """Go on with a paused campaign, also on clusters that were closed to it."""
        self.governor.forget(campaign.id)
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

    def _close_unused_files(self, campaigns: Iterable[Campaign]) -> None:
        used = {pilot.campaign for pilot in list(self.pilots.values())}
        used |= {campaign.id for campaign in campaigns if not campaign.state.final}
        for campaign_id in {*self._arguments, *self._logs} - used:
            self.close_files(campaign_id)

    def close_files(self, campaign_id: str) -> None:
        """Close the files of a campaign; they are opened anew when they are needed."""
        with self._lock:
            lock = self._log_locks.setdefault(campaign_id, threading.Lock())
            self._arguments.pop(campaign_id, None)
        with lock:
            if outcome_log := self._logs.pop(campaign_id, None):
                outcome_log.close()

    def pilots_of(self, campaign_id: str) -> list[LivePilot]:
        """The pilots of a campaign that have not ended."""
        return [pilot for pilot in list(self.pilots.values()) if pilot.campaign == campaign_id]

    def _find_pilots(self) -> bool:
        """Go on with the pilots of an earlier process; says that it has."""
        for pilot in self.store.pilots(live=True):
            if not self.owns(campaign := self.store.campaign(pilot.campaign)):
                continue
            bundles = self.store.live_bundles(pilot.id)
            if pilot.run_id:
                found = self.pilots[pilot.id] = LivePilot(pilot, bundles=bundles)
                reader = self.arguments(campaign)
                try:
                    found.unplaced = {bundle.id: reader.bytes_of(bundle) for bundle in bundles}
                except GridError as error:  # most bundles are on the cluster already, and others go on
                    log.error("bundles of pilot %s are not placed again: %s", pilot.id, error)
            else:
                self.store.give_back([bundle.id for bundle in bundles])
                self.store.update_pilot(pilot.id, state="ended", cause="lost", ended_at=clock.now())
        return True

    def _control(self) -> None:
        states = [CampaignState.ACTIVE, CampaignState.PAUSED, CampaignState.CANCELLED]
        active: list[Campaign] = []
        campaigns = [one for one in self.store.campaigns(states) if one.kind == CAMPAIGN and self.owns(one)]
        self._note_reopened(campaigns)
        for campaign in campaigns:
            pilots = self.pilots_of(campaign.id)
            if campaign.state is CampaignState.ACTIVE:
                if self._settle(campaign):
                    self._judge(campaign)
                    active.append(campaign)
            elif campaign.state is CampaignState.CANCELLED and pilots:
                self.end_pilots(pilots)
            elif campaign.state is CampaignState.CANCELLED and campaign.ended < campaign.total:
                self.store.finish_cancel(campaign.id, clock.now())
                self.governor.end(campaign)
        self._end_useless_pilots({campaign.id for campaign in campaigns})
        clusters.end_pilots(self)
        self._start_pilots(active)
        for name in {pilot.cluster for pilot in list(self.pilots.values())}:
            self._follow(name)
        self._close_unused_files(campaigns)
        self._sweep()

    def _end_useless_pilots(self, campaigns: Collection[str]) -> None:
        """Note pilots whose launch has failed, and end those that wait in a queue for a campaign that has ended."""
        for pilot in list(self.pilots.values()):
            if not pilot.run_id and pilot.thread is not None and not pilot.thread.is_alive():
                self.end_pilot(pilot, _status_without_run(pilot.failure))
            elif not pilot.running and pilot.campaign not in campaigns:
                self.end_pilots([pilot])

    def _start_pilots(self, active: list[Campaign]) -> None:
        for campaign, cluster in self.governor.pilots_to_start(active, list(self.pilots.values()), self._user):
            if cluster not in self.troubles:
                self._start_pilot(campaign, cluster, self._workers(campaign.id, cluster))

    def _sweep(self) -> None:
        """Remove now and then the folders of campaigns whose clients were killed before these began."""
        if clock.now() >= self._sweep_due:
            self._sweep_due = clock.now() + SWEEP_SECONDS
            sweep_folders(self._has_campaign)

    def _has_campaign(self, campaign_id: str) -> bool:
        """Whether there is a campaign of this id."""
        try:
            return self.store.campaign(campaign_id).id == campaign_id
        except UnknownCampaignError:
            return False

    def _is_known(self) -> bool:
        """Whether the engine may go on; one whose user is let in no longer ends its pilots after what they have."""
        before = self._refusal
        try:
            self.identify()
        except (GridTokenError, NotAllowedError) as error:
            if before is None:
                log.error("this engine begins nothing: %s", error)
            for pilot in list(self.pilots.values()):
                pilot.yielding = True
            return False
        return True

    def _note_reopened(self, campaigns: Iterable[Campaign]) -> None:
        """Judge campaigns anew on clusters that were reopened to them, maybe by an administrator's engine."""
        shares = {(campaign.id, share.cluster): share.state for campaign in campaigns for share in campaign.clusters}
        for campaign_id in {key[0] for key in self._closed if shares.get(key) == "open"}:
            self.governor.forget(campaign_id)
        self._closed = {key for key, state in shares.items() if state != "open"}

    def _settle(self, campaign: Campaign) -> bool:
        """End a campaign that has all outcomes, or too many failures; says whether it goes on."""
        if campaign.ended >= campaign.total and not (campaign.is_open and self.pilots_of(campaign.id)):
            lacking = campaign.failed + campaign.cancelled
            state = CampaignState.FAILED if lacking else CampaignState.SUCCEEDED
            counts = {"failed": campaign.failed, "were cancelled": campaign.cancelled}
            reason = " and ".join(f"{n} of {campaign.total} items {what}" for what, n in counts.items() if n)
            if self.store.set_campaign_state(campaign.id, state, reason, clock.now(), total=campaign.total):
                level = "warning" if lacking else "info"
                self.tell_of(
                    campaign.id, CAMPAIGN_ENDED, reason or f"all {campaign.total} items succeeded", level=level
                )
            self.governor.end(campaign)
        elif campaign.max_failures is not None and campaign.failed > campaign.max_failures:
            reason = f"{campaign.failed} items failed, more than max_failures={campaign.max_failures}"
            self.cancel(campaign.id, reason)
        elif campaign.clusters and all(share.closed for share in campaign.clusters):
            reason = "; ".join(f"{share.cluster}: {share.reason}" for share in campaign.clusters)
            self.pause(campaign.id, reason)
        else:
            return True
        return False

    def _judge(self, campaign: Campaign) -> None:
        """Close a cluster to a campaign where most of its last items failed, and not on its other clusters."""
        for share in campaign.clusters:
            if share.state == "open" and self.governor.judged(campaign, share.cluster) is Verdict.QUARANTINED:
                reason = "more than half of the last 20 items failed there, and not elsewhere"
                self.store.set_cluster(campaign.id, share.cluster, state="quarantined", reason=reason)
                for pilot in self.pilots_of(campaign.id):
                    pilot.yielding = pilot.yielding or pilot.cluster == share.cluster
                self.note(campaign.id, share.cluster, "error", "quarantined", "", reason)

    def note(
        self, campaign_id: str, cluster: str, level: str, code: str, group: str, message: str, count: int = 1
    ) -> None:
        """Add to an event of a campaign; Prefect is told of each new one."""
        is_new = self.store.add_event(campaign_id, cluster, level, code, group, message, count, clock.now())
        if is_new:
            self.tell_of(campaign_id, _EVENTS.get(code, ITEMS_FAILED), message, cluster, level)

    def tell_of(self, campaign_id: str, event: str, message: str, cluster: str = "", level: str = "info") -> None:
        """Tell Prefect of something that happened to a campaign."""
        name = self.store.campaign(campaign_id).name
        self._announcer.announce(grid_event(event, campaign_id, name, message[:500], cluster, level))

    def _start_pilot(self, campaign: Campaign, cluster: str, workers: int) -> None:
        number = self.store.add_pilot(campaign.id, cluster, workers, clock.now())
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
        live.mean_seconds = self.governor.mean_seconds(campaign, cluster)
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
            pilot.id, state="ended", cause=cause, message=status.message[:2000], ended_at=clock.now()
        )
        del self.pilots[pilot.id]
        if not cause and status.message:  # all that it has to say of an ordinary end
            self.note(pilot.campaign, pilot.cluster, "warning", "epilogue", "", status.message[:2000])
        self._note_end(pilot, cause, status.message)
        if returned:
            log.info("pilot %s has ended (%s); %s items wait again", pilot.id, cause or "done", returned)
        self.wake()

    def note_start(self, pilot: LivePilot) -> None:
        """Note that a pilot takes bundles."""
        self.store.update_pilot(pilot.id, state="running", started_at=clock.now(), seconds=pilot.seconds)
        self.governor.note_start(pilot, self.store.campaign(pilot.campaign).user)

    def note_answer(self, campaign_id: str, cluster: str) -> None:
        """Close what was open because a cluster did not answer."""
        if count := self.store.close_events(campaign_id, cluster, "connection"):
            text = f"{cluster} answers again; it had not answered {count} times"
            self.tell_of(campaign_id, CLUSTER_BACK, text, cluster)
            self.store.add_event(campaign_id, cluster, "info", "back", "", text, 1, clock.now())

    def give_up(self, pilot: LivePilot) -> None:
        """Have the items of a pilot wait again whose cluster has been silent for long. It may still have done them."""
        if pilot.bundles:
            self.governor.note_returned(pilot, dict(pilot.bundles))
            pilot.bundles, pilot.unplaced = {}, {}
            self.store.give_back([bundle.id for bundle in self.store.live_bundles(pilot.id)])
            self.wake()

    def _note_end(self, pilot: LivePilot, cause: str, message: str) -> None:
        """Note an end without an outcome as an event; close the cluster to the campaign when that happens again."""
        campaign, cause = self.store.campaign(pilot.campaign), "" if pilot.stopping else cause
        closes = self.governor.note_end(pilot, campaign, cause)
        if pilot.outcomes or not cause or campaign.state is not CampaignState.ACTIVE:
            return
        text = f"a pilot ended without an outcome ({cause}): {message}".strip(": ")[:2000]
        self.note(campaign.id, pilot.cluster, "error", "pilot", cause, text)
        if closes:
            self.store.set_cluster(campaign.id, pilot.cluster, state="paused", reason=text)

    def end_pilots(self, pilots: Iterable[LivePilot]) -> None:
        """End the runs of pilots, each in a thread, since a cluster may take long to answer."""
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
