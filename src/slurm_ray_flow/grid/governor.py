"""The governor: which campaign gets the next pilot, which pilot ends its turn, and which cluster is closed to whom.

It joins the pure rules of `core/grid/` (fair shares, control of pilots, troubles) with the store. The engine and its
threads tell it what happens; it changes no pilot but by `LivePilot.yielding`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from slurm_ray_flow.core.cluster_report import Load
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.grid import control
from slurm_ray_flow.core.grid.control import ControlState, Observation, Starts
from slurm_ray_flow.core.grid.fairness import Claim, Ledger, claim_of, giver_of_place, turn_seconds
from slurm_ray_flow.core.grid.model import Bundle, Campaign, ClusterShare, User
from slurm_ray_flow.core.grid.troubles import Verdict, Window, verdict
from slurm_ray_flow.core.grid.work import Demand, new_mean
from slurm_ray_flow.core.items import ItemResult
from slurm_ray_flow.grid import clock
from slurm_ray_flow.grid.live_pilot import LivePilot, Wish, oldest
from slurm_ray_flow.grid.sharing import Others
from slurm_ray_flow.grid.store import Store
from slurm_ray_flow.remote.shared.items import INTERRUPTED, VALUE

KEEP_SECONDS = 5.0
"""Seconds between two times at which usage is kept."""
SUSPECT_SECONDS = 600.0
"""For so long a cluster where most items fail waits for what the campaign's other clusters say."""
FIRST_START_SECONDS = 3.0
"""What a start is taken to last before one was seen."""
UNKNOWN_SECONDS = 1.0
"""What an item is charged for whose duration is not known."""
LOAD_LASTS_SECONDS = 120.0
"""For so long a cluster's load is taken to be what it was."""
REFUSING = ("rejected", "connection")
"""Causes of the end of a pilot that never was one: the cluster is asked again, later and later."""
MOST_REFUSALS = 5
"""After so many in a row a cluster that never gave this user a pilot is closed to the campaign."""


log = logging.getLogger("slurm_ray_flow.grid")


@dataclasses.dataclass
class Place:
    """A campaign on one of its clusters.

    Attributes:
        window: its last outcomes there.
        starts: how its pilots began.
        mean_seconds: the mean duration of its items; None for not known.
        suspect_since: from when on it waits for what other clusters say; None for no suspicion.
    """

    window: Window = dataclasses.field(default_factory=Window)
    starts: Starts = dataclasses.field(default_factory=Starts)
    mean_seconds: float | None = None
    suspect_since: float | None = None


@dataclasses.dataclass
class Account:
    """A user's pilots on one cluster, between two decisions."""

    state: ControlState = dataclasses.field(default_factory=ControlState)
    waits: list[float] = dataclasses.field(default_factory=list)
    rejected: int = 0
    preempted: int = 0
    has_begun: bool = False


class Governor:
    """Shares clusters out, and watches over them. Its methods are for all threads of the engine.

    Args:
        store: the grid's tables.
        workers: how many items a pilot of a campaign runs at a time on a cluster.
        cores: how many cores it has.
        cap: how many pilots all campaigns together may have on a cluster; None for any number.
        clock: the time, in seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        workers: Callable[[str, str], int],
        cores: Callable[[str, str], int],
        cap: Callable[[str], int | None],
        clock: Callable[[], float] = clock.now,
    ) -> None:
        self._store, self._workers, self._cores, self._cap, self._now = store, workers, cores, cap, clock
        self._lock = threading.RLock()
        self._places: dict[tuple[str, str], Place] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._accounts: dict[tuple[str, str], Account] = {}
        self._start_seconds: dict[str, float] = {}
        self._loads: dict[str, tuple[float, Load | None]] = {}
        self._claims: dict[str, Claim] = {}
        self._costs: dict[int, float] = {}
        self._user: User | None = None
        self._caps: dict[str, int] = {}
        self._published: set[str] = set()
        self._kept_at = clock()
        for cluster, accounts in store.usage().items():
            self._ledgers.setdefault(cluster, Ledger()).restore(accounts)

    # ---- pilots

    def pilots_to_start(
        self, campaigns: Collection[Campaign], pilots: Iterable[LivePilot], user: User | None = None
    ) -> list[tuple[Campaign, str]]:
        """Whose pilots are to be started now, and where; marks pilots whose turn is over.

        Args:
            campaigns: all that are active.
            pilots: all that have not ended.
            user: whose these are, where engines of several users share the database.
        """
        with self._lock:
            self._user, self._caps = user, self._store.caps()
            for campaign in campaigns:
                self._claims[campaign.id] = self._claim_of(campaign)
            live, starting = list(pilots), []
            clusters = {share.cluster for campaign in campaigns for share in campaign.clusters}
            for cluster in sorted(clusters | {pilot.cluster for pilot in live} | self._published):
                wishes = self._wishes(cluster, campaigns, live)
                here = [pilot for pilot in live if pilot.cluster == cluster]
                chosen = self._share_out(cluster, wishes, here)
                starting += [(campaign, cluster) for campaign in chosen]
            self._keep()
            return starting

    def _wishes(self, cluster: str, campaigns: Iterable[Campaign], live: Iterable[LivePilot]) -> dict[str, Wish]:
        """What each campaign with work on a cluster has and wants there."""
        here: dict[str, list[LivePilot]] = {}
        for pilot in live:
            if pilot.cluster == cluster:
                here.setdefault(pilot.campaign, []).append(pilot)
        wishes = {}
        for campaign in campaigns:
            shares = [share for share in campaign.clusters if share.cluster == cluster and share.state == "open"]
            own = [pilot for pilot in here.get(campaign.id, []) if not pilot.yielding]
            if shares and (own or campaign.unleased):
                try:
                    wishes[campaign.id] = self._wish(campaign, shares[0], own)
                except (SlurmRayFlowError, OSError, KeyError, ValueError) as error:  # the others go on
                    log.error("campaign %s on %s can't be read: %r", campaign.id[:8], cluster, error)
        return wishes

    def _wish(self, campaign: Campaign, share: ClusterShare, pilots: list[LivePilot]) -> Wish:
        known = [pilot.mean_seconds for pilot in pilots if pilot.mean_seconds is not None]
        place, cores = self._place(campaign.id, share), self._cores(campaign.id, share.cluster)
        most = int(share.options.get("max_pilots") or campaign.max_pilots)
        max_queued = int(campaign.options.get("max_queued") or control.MAX_QUEUED)
        demand = Demand(
            left=campaign.total - campaign.ended,
            unleased=campaign.unleased if self._has_items(campaign) else 0,
            mean_seconds=sum(known) / len(known) if known else place.mean_seconds,
            workers=self._workers(campaign.id, share.cluster),
            pilots=len(pilots),
            waiting=sum(not pilot.running for pilot in pilots),
            most=_most_pilots(campaign, self._judged(campaign, share.cluster), most),
            clusters=sum(one.state == "open" for one in campaign.clusters),
            at_once=campaign.is_open,
        )
        account = self._account(campaign.user, share.cluster)
        wanted = control.pilots_needed(demand, account.state.mean_wait)
        wanted = min(wanted, max(max_queued - demand.waiting, 0))
        held = float(cores * len(pilots))
        claim = dataclasses.replace(self._claims[campaign.id], cores=float(cores), held=held, wanted=wanted)
        return Wish(campaign, claim, pilots, max_queued)

    def _has_items(self, campaign: Campaign) -> bool:
        """Whether a pilot would get an item now: those that failed wait for some time."""
        if campaign.next_number < campaign.total or not campaign.waiting:
            return True
        return self._store.next_due(campaign.id) <= self._now()

    def _share_out(self, cluster: str, wishes: Mapping[str, Wish], here: Collection[LivePilot]) -> list[Campaign]:
        """The campaigns that get a pilot on a cluster now, one for each pilot; engines of others are told of it."""
        cap, user = self._cap_of(cluster), self._user
        if cap is None or user is None:
            return self._chosen(cluster, wishes, here, cap, Others())
        with self._store.sharing(cluster, user.name) as shared:
            others = shared.others()
            self._ledger(cluster).follow(others.accounts)
            chosen = self._chosen(cluster, wishes, here, cap, others)
            claims = [self._still_wanted(wish, cluster, chosen) for wish in wishes.values()]
            expected = {name: self._expected(wish, self._turn_on(cluster)) for name, wish in wishes.items()}
            shared.publish(claims, expected, len(here) + len(chosen), sum(pilot.yielding for pilot in here))
            shared.keep_usage(self._ledger(cluster).accounts())
        self._published = self._published - {cluster} | ({cluster} if claims or here or chosen else set())
        return chosen

    def _still_wanted(self, wish: Wish, cluster: str, chosen: Collection[Campaign]) -> Claim:
        """What a campaign has, and would take of a place that gets free: nothing while its cluster is not asked."""
        state, claim = self._account(wish.claim.user, cluster).state, wish.claim
        started = sum(campaign.id == claim.campaign for campaign in chosen)
        most = state.reference - len(wish.queued) if state.pause_until <= self._now() else 0
        wanted = max(min(claim.wanted, most) - started, 0)
        return dataclasses.replace(claim, held=claim.held + started * claim.cores, wanted=wanted)

    def _chosen(
        self, cluster: str, wishes: Mapping[str, Wish], here: Collection[LivePilot], cap: int | None, others: Others
    ) -> list[Campaign]:
        """The campaigns that get a pilot now. What is another user's turn is left free for the engine of that user."""
        ledger, active = self._ledger(cluster), len(here) + others.pilots
        one_turn = self._turn_on(cluster)
        claims = {name: wish.claim for name, wish in wishes.items()} | {one.campaign: one for one in others.claims}
        expected = {name: self._expected(wish, one_turn) for name, wish in wishes.items()}
        ledger.update(claims.values(), self._now(), {**others.expected, **expected})
        load, room = self._load(cluster, here), None if cap is None else cap - active
        users: dict[str, list[Wish]] = {}
        for wish in wishes.values():
            users.setdefault(wish.claim.user, []).append(wish)
        allowed = {user: self._allowed(user, cluster, of_user, room, load) for user, of_user in users.items()}
        wanted = {name: claim.wanted for name, claim in claims.items()}
        given: list[str] = []
        while cap is None or active + len(given) < cap:
            waiting = [one for name, one in claims.items() if wanted[name] > 0 and allowed.get(one.user, 1) > 0]
            if (claim := ledger.next_of(waiting)) is None:
                break
            given.append(claim.campaign)
            wanted[claim.campaign] -= 1
            if claim.campaign in wishes:
                allowed[claim.user] -= 1
            ledger.expect(claim, claim.cores * one_turn)
        if cap is not None and active >= cap:
            self._end_turns(cluster, wishes, here, others)
        return [wishes[name].campaign for name in given if name in wishes]

    def _turn_on(self, cluster: str) -> float:
        return turn_seconds(self._start_seconds.get(cluster, FIRST_START_SECONDS))

    def _expected(self, wish: Wish, one_turn: float) -> float:
        """Core-seconds for its pilots that have not begun, less those of bundles that can be taken back."""
        outstanding = sum(
            self._costs.get(number, 0.0) * count
            for pilot in wish.pilots
            for number, count in list(pilot.bundles.items())
        )
        return wish.claim.cores * one_turn * len(wish.queued) - outstanding

    def _cap_of(self, cluster: str) -> int | None:
        """The cap of a cluster: the one that was set, else that of its kind."""
        if chosen := self._caps.get(cluster.rpartition("/")[2]):
            return chosen
        try:
            return self._cap(cluster)
        except SlurmRayFlowError as error:  # a launch there will say the same in its own words
            log.warning("%s: %s", cluster, error.what)
            return 1

    def _load(self, cluster: str, here: Iterable[LivePilot]) -> float | None:
        """The part of a cluster that others use."""
        known_at, load = self._loads.get(cluster, (0.0, None))
        if load is None or self._now() - known_at > LOAD_LASTS_SECONDS:
            return None
        own = sum(self._cores(pilot.campaign, cluster) for pilot in here if pilot.running)
        return control.share_of_others(load, own)

    def _allowed(self, user: str, cluster: str, wishes: Collection[Wish], room: int | None, load: float | None) -> int:
        """How many pilots a user may ask a cluster for now."""
        account, now = self._account(user, cluster), self._now()
        queued = [pilot for wish in wishes for pilot in wish.queued]
        wanting = [wish for wish in wishes if wish.claim.wanted]
        seen = Observation(
            now=now,
            queued=len(queued),
            running=sum(len(wish.pilots) for wish in wishes) - len(queued),
            need=sum(wish.claim.wanted for wish in wanting),
            unserved=sum(not wish.pilots for wish in wanting),
            room=room,
            max_queued=max((wish.max_queued for wish in wanting), default=control.MAX_QUEUED),
            longest_wait=max((now - pilot.created for pilot in queued), default=0.0),
            waits=tuple(account.waits),
            rejected=account.rejected,
            preempted=account.preempted,
            load=load,
        )
        account.waits, account.rejected, account.preempted = [], 0, 0
        account.state, count = control.step(account.state, seen)
        return count

    def _end_turns(self, cluster: str, wishes: Mapping[str, Wish], here: Iterable[LivePilot], others: Others) -> None:
        """Mark pilots that are to give up their places under a full cap to campaigns that wait, of whichever user."""
        now, ledger, one_turn = self._now(), self._ledgers[cluster], self._turn_on(cluster)
        claims = {name: wish.claim for name, wish in wishes.items()}
        waiting = {
            name: claim
            for name, claim in claims.items()
            if claim.wanted and self._account(claim.user, cluster).state.pause_until <= now
        }
        waiting |= {claim.campaign: claim for claim in others.claims if claim.wanted}
        claims |= {claim.campaign: claim for claim in others.claims}
        for pilot in here if waiting else ():  # those of campaigns that are paused, closed or idle keep no place
            wish = wishes.get(pilot.campaign)
            pilot.yielding = pilot.yielding or wish is None or wish.campaign.ended >= wish.campaign.total
        leaving = sum(pilot.yielding for pilot in here) + others.leaving
        while waiting and (taker := ledger.next_of(list(waiting.values()))):
            del waiting[taker.campaign]
            if leaving > 0:  # this one gets the place of one that is about to end
                leaving -= 1
                continue
            for giver in giver_of_place(ledger, list(claims.values()), taker):
                if giver.campaign not in wishes:  # its own engine ends the turn
                    break
                at_once = taker.user == giver.user and taker.rank < giver.rank
                if last := oldest(wishes[giver.campaign].pilots, now - (0.0 if at_once else one_turn)):
                    last.yielding = True
                    claims[giver.campaign] = dataclasses.replace(giver, held=giver.held - giver.cores)
                    break

    # ---- what happens to pilots

    def note_load(self, cluster: str, load: Load | None) -> None:
        """Note how much of a cluster is in use, our pilots included."""
        with self._lock:
            self._loads[cluster] = self._now(), load

    def note_start(self, pilot: LivePilot, user: str) -> None:
        """Note that a pilot has begun to take bundles."""
        with self._lock:
            account, wait = self._account(user, pilot.cluster), max(self._now() - pilot.created, 0.0)
            account.waits.append(wait)
            account.has_begun = True
            before = self._start_seconds.get(pilot.cluster, wait)
            self._start_seconds[pilot.cluster] = 0.7 * before + 0.3 * wait

    def note_end(self, pilot: LivePilot, campaign: Campaign, cause: str) -> bool:
        """Note the end of a pilot; says whether the cluster is to be closed to its campaign because of that.

        Args:
            pilot: the pilot.
            campaign: its campaign.
            cause: "" for an ordinary end.
        """
        with self._lock:
            self.note_returned(pilot, dict(pilot.bundles))
            account, place = self._account(campaign.user, pilot.cluster), self._of(pilot)
            if place.mean_seconds is not None:
                self._store.set_cluster(campaign.id, pilot.cluster, mean_seconds=place.mean_seconds)
            account.preempted += cause == "preempted"
            if cause in REFUSING and not pilot.outcomes:
                account.rejected += 1
                return not account.has_begun and account.state.refusals + 1 >= MOST_REFUSALS
            lived = None if pilot.running_since is None else self._now() - pilot.running_since
            place.starts = place.starts.ended(pilot.outcomes, lived, bool(cause) and cause != "preempted")
            is_dead = place.starts.too_many or (cause == "environment" and not pilot.outcomes)
            if is_dead:
                place.starts = Starts()
            return is_dead

    def forget(self, campaign_id: str) -> None:
        """Judge a campaign anew on all its clusters, where a person goes on with it."""
        with self._lock:
            for key in [key for key in self._places if key[0] == campaign_id]:
                mean = self._places[key].mean_seconds
                self._places[key] = Place(mean_seconds=mean)
                if claim := self._claims.get(campaign_id):
                    self._accounts.pop((claim.user, key[1]), None)

    def end(self, campaign: Campaign) -> None:
        """Forget a campaign that has ended."""
        with self._lock:
            self.forget(campaign.id)
            for share in campaign.clusters:
                self._places.pop((campaign.id, share.cluster), None)
                self._ledger(share.cluster).forget(campaign.user, campaign.id)
            self._claims.pop(campaign.id, None)

    # ---- what happens to items

    def note_lease(self, pilot: LivePilot, campaign: Campaign, bundle: Bundle) -> None:
        """Charge a bundle by estimate."""
        with self._lock:
            place = self._of(pilot)
            mean = pilot.mean_seconds or place.mean_seconds or UNKNOWN_SECONDS
            each = mean * self._cores(campaign.id, pilot.cluster) / max(pilot.workers, 1)
            self._costs[bundle.id] = each
            self._ledger(pilot.cluster).charge(self._claim_of(campaign), each * bundle.size, self._now())

    def note_returned(self, pilot: LivePilot, counts: Mapping[int, int]) -> None:
        """Take back the charge for items that were not run.

        Args:
            pilot: the pilot that had them.
            counts: how many of each bundle.
        """
        with self._lock:
            if claim := self._claims.get(pilot.campaign):
                for bundle, count in counts.items():
                    cost = self._costs.pop(bundle, 0.0)
                    self._ledger(pilot.cluster).correct(claim, -cost * count)

    def note_results(
        self,
        pilot: LivePilot,
        campaign: Campaign,
        results: Collection[ItemResult],
        failed_before: Collection[int] = (),
    ) -> None:
        """Charge what items have really taken, and note which have failed.

        Items in `failed_before` that fail again say nothing of the cluster: bad items that are tried again together
        would close a good one.
        """
        with self._lock:
            place, ledger = self._of(pilot), self._ledger(pilot.cluster)
            per_worker = self._cores(campaign.id, pilot.cluster) / max(pilot.workers, 1)
            taken = sum(result.seconds for result in results) * per_worker
            charged = sum(self._costs.get(result.bundle, result.seconds * per_worker) for result in results)
            ledger.correct(self._claim_of(campaign), taken - charged)
            for bundle in {result.bundle for result in results} - pilot.bundles.keys():
                self._costs.pop(bundle, None)
            place.mean_seconds = new_mean(place.mean_seconds, [result.seconds for result in results])
            told = [one for one in results if one.kind == VALUE or one.item not in failed_before]
            place.window = place.window.with_outcomes([one.kind != VALUE for one in told if one.kind != INTERRUPTED])

    def mean_seconds(self, campaign: Campaign, cluster: str) -> float | None:
        """The mean duration of a campaign's items on a cluster; None for not known."""
        with self._lock:
            [share] = [share for share in campaign.clusters if share.cluster == cluster] or [ClusterShare(cluster)]
            return self._place(campaign.id, share).mean_seconds

    def cores(self, campaign_id: str, cluster: str, unknown: int) -> int:
        """The cores of a pilot of a campaign; `unknown` where the campaign's files do not say."""
        try:
            return self._cores(campaign_id, cluster)
        except (SlurmRayFlowError, OSError, KeyError, ValueError):
            return unknown

    def most_items(self, pilot: LivePilot, campaign: Campaign) -> int | None:
        """How many items a pilot may have at most, by what its cluster has shown; None for any number."""
        with self._lock:
            judged = self._judged(campaign, pilot.cluster)
            if judged is Verdict.OPEN:
                return None
            return pilot.workers if judged is Verdict.CANARY else 0

    def judged(self, campaign: Campaign, cluster: str) -> Verdict:
        """What the last outcomes of a campaign on a cluster say of it."""
        with self._lock:
            return self._judged(campaign, cluster)

    def _judged(self, campaign: Campaign, cluster: str) -> Verdict:
        others = [share.cluster for share in campaign.clusters if share.state == "open" and share.cluster != cluster]
        windows = [self._places.get((campaign.id, other), Place()).window for other in others]
        place = self._places.setdefault((campaign.id, cluster), Place())
        found = verdict(place.window, windows)
        if found is not Verdict.SUSPECT:
            place.suspect_since = None
            return found
        place.suspect_since = place.suspect_since or self._now()
        waited = self._now() - place.suspect_since
        return Verdict.SUSPECT if waited < SUSPECT_SECONDS else Verdict.CANARY

    # ---- its books

    def keep(self) -> None:
        """Keep usage in the store."""
        with self._lock:
            for cluster, ledger in self._ledgers.items():
                self._store.keep_usage(cluster, ledger.accounts(), self._user.name if self._user else None)
            self._kept_at = self._now()

    def _keep(self) -> None:
        if self._ledgers and self._now() - self._kept_at >= KEEP_SECONDS:
            self.keep()

    def _ledger(self, cluster: str) -> Ledger:
        return self._ledgers.setdefault(cluster, Ledger())

    def _account(self, user: str, cluster: str) -> Account:
        return self._accounts.setdefault((user, cluster), Account())

    def _claim_of(self, campaign: Campaign) -> Claim:
        return claim_of(campaign, self._user.weight if self._user else 1.0)

    def _of(self, pilot: LivePilot) -> Place:
        return self._places.setdefault((pilot.campaign, pilot.cluster), Place())

    def _place(self, campaign_id: str, share: ClusterShare) -> Place:
        place = self._places.setdefault((campaign_id, share.cluster), Place())
        if place.mean_seconds is None:
            place.mean_seconds = share.mean_seconds
        return place


def _most_pilots(campaign: Campaign, judged: Verdict, most: int) -> int:
    """How many pilots a campaign may have on a cluster: few in test mode, and where the cluster is not known to do."""
    if judged is Verdict.OPEN:
        return 1 if claim_of(campaign).test else most
    few = most if campaign.is_open else 1  # those of an open one are all waited for
    return few if judged is Verdict.CANARY else 0
