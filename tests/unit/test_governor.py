"""The governor of the grid, with a clock, pilots and tables of the test's own."""

import contextlib
import copy
import dataclasses
import itertools
import time

import pytest

import grid_lab
import postgres
from slurm_ray_flow.core.cluster_report import Load
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.control import FIRST_PAUSE
from slurm_ray_flow.core.grid.fairness import check_test_mode
from slurm_ray_flow.core.grid.model import Bundle, ClusterShare, Pilot, User
from slurm_ray_flow.core.items import ItemResult
from slurm_ray_flow.grid.clock import SteadyClock
from slurm_ray_flow.grid.governor import LOAD_LASTS_SECONDS, MOST_REFUSALS, SUSPECT_SECONDS, Governor
from slurm_ray_flow.grid.live_pilot import LivePilot
from slurm_ray_flow.grid.store import Store

WORKERS, SECONDS = 2, 3.0


class FakeStore:
    """A fake of the store: of its tables only what the governor keeps there."""

    def __init__(self):
        self.kept, self.means, self.due = {}, {}, 0.0

    def usage(self):
        return self.kept

    def next_due(self, campaign):
        return self.due

    def keep_usage(self, cluster, accounts, only_user=None):
        self.kept[cluster] = copy.deepcopy(accounts)

    def caps(self):
        return {}

    def set_cluster(self, campaign, cluster, *, mean_seconds):
        self.means[campaign, cluster] = mean_seconds


class FakeGrid:
    """A fake of the engine and its clusters: pilots begin after some seconds, and do bundles of three seconds."""

    def __init__(self, cap=None, start_seconds=2.0, store=None, user=None):
        self.store, self.now, self.cap, self.start_seconds = store or FakeStore(), 1000.0, cap, start_seconds
        self.user = user
        self.campaigns, self.live, self.asked, self.verdicts, self.refuses = {}, [], [], [], False
        self.bundles = itertools.count(1)
        self.restart()

    def restart(self):
        self.live = []
        self.governor = Governor(
            self.store, lambda *_: WORKERS, lambda *_: WORKERS, lambda _: self.cap, lambda: self.now
        )

    def campaign(self, user="alice", total=1_000_000, clusters=("desi",), **fields):
        shares = tuple(ClusterShare(name, position) for position, name in enumerate(clusters))
        made = grid_lab.campaign(total, user=user, clusters=shares, **{"max_pilots": 16, **fields})
        self.campaigns[made.id] = made
        if self.user:
            self.store.add_campaign(made)
        return made.id

    def started(self, campaign, cluster="desi", state="running"):
        self.asked.append(self.now)
        blank = {"run_id": "", "results_offset": 0, "ended_at": None, "cause": "", "message": "", "succeeded": 0}
        times = {"created": self.now, "started_at": self.now if state == "running" else None}
        return LivePilot(
            Pilot(id=len(self.asked), campaign=campaign, cluster=cluster, state=state, workers=WORKERS, failed=0,
                  **blank, **times)
        )  # fmt: skip

    def second(self):
        for campaign, cluster in self.governor.pilots_to_start(list(self.campaigns.values()), self.live, self.user):
            pilot = self.started(campaign.id, cluster, "requested")
            self.live.append(pilot)
            if self.refuses:
                self.end(pilot, "rejected")
            assert self.cap is None or len(self.live) <= self.cap
        self.now += 1.0
        for pilot in list(self.live):
            if pilot.running:
                self.work(pilot)
            elif self.now - pilot.created >= self.start_seconds:
                pilot.running, pilot.running_since = True, self.now
                self.governor.note_start(pilot, self.campaigns[pilot.campaign].user)
        return self

    def work(self, pilot):
        """Lease a bundle of an item for each worker, end it when its seconds have passed, or end the pilot."""
        if pilot.yielding and not pilot.bundles:
            self.end(pilot, "")
        elif not pilot.bundles:
            pilot.due = self.now + SECONDS
            self.lease(pilot)
        elif self.now >= pilot.due:
            [number] = pilot.bundles
            pilot.bundles = {}
            self.report(pilot, [False] * WORKERS, number)

    def lease(self, pilot, size=WORKERS):
        campaign = self.campaigns[pilot.campaign]
        bundle = Bundle(next(self.bundles), pilot.id, campaign.id, ((campaign.next_number, size),), size)
        self.campaigns[campaign.id] = dataclasses.replace(campaign, next_number=campaign.next_number + size)
        self.governor.note_lease(pilot, campaign, bundle)
        pilot.bundles[bundle.id] = size

    def report(self, pilot, failed, bundle=0, failed_before=()):
        results = [
            ItemResult(number, bundle, "error" if bad else "value", SECONDS, 0, 0, 0)
            for number, bad in enumerate(failed)
        ]
        self.governor.note_results(pilot, self.campaigns[pilot.campaign], results, failed_before)
        pilot.outcomes += len(failed)
        pilot.mean_seconds = SECONDS

    def end(self, pilot, cause):
        self.live.remove(pilot)
        self.verdicts.append(self.governor.note_end(pilot, self.campaigns[pilot.campaign], cause))

    def run(self, seconds):
        for _ in range(int(seconds)):
            self.second()
        return self

    def count(self, campaign):
        return sum(pilot.campaign == campaign for pilot in self.live)


@pytest.fixture(scope="module")
def tables():
    """A real PostgreSQL that several engines share."""
    with grid_lab.postgresql() as url, contextlib.closing(Store(url)) as store:
        store.migrate()
        yield store


def parts_of(grids, seconds):
    """Lets engines run side by side; gives how many pilots each has on average, in a time after the first half."""
    sums = [0] * len(grids)
    for second in range(2 * seconds):
        for grid in grids:
            grid.second()
            assert sum(len(other.live) for other in grids) <= grids[0].cap, "together they keep to the cap"
        if second >= seconds:
            sums = [total + len(grid.live) for total, grid in zip(sums, grids, strict=True)]
    return [total / seconds for total in sums]


@pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed")
def test_engines_of_several_users_share_a_cluster_by_the_tables_that_they_share(tables):
    cluster = ["shared"]
    alice = FakeGrid(cap=8, store=tables, user=User("alice"))
    bob = FakeGrid(cap=8, store=tables, user=User("bob"))
    alice.campaign("alice", clusters=cluster)
    alice.run(60)
    assert len(alice.live) == 8
    bob.campaign("bob", clusters=cluster)
    assert parts_of([alice, bob], 50) == pytest.approx([4, 4], abs=0.5)
    bob.user = User("bob", weight=3.0)
    assert parts_of([alice, bob], 50) == pytest.approx([2, 6], abs=0.5)
    bob.campaigns, bob.live = {}, []
    bob.second()
    assert parts_of([alice], 20) == pytest.approx([8], abs=0.5)


@pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed")
def test_one_place_is_taken_in_turns_by_engines_of_several_users(tables):
    grids = [FakeGrid(cap=1, store=tables, user=User(name)) for name in ("alice", "bob")]
    for grid in grids:
        grid.campaign(grid.user.name, clusters=["one-place"])
    parts = parts_of(grids, 120)
    assert parts == pytest.approx([1 / 2] * 2, abs=0.1)
    assert sum(parts) > 0.75, "starts cost little"


def test_no_more_pilots_of_a_campaign_wait_than_it_allows():
    grid = FakeGrid(start_seconds=10_000.0)
    few, many = grid.campaign(options={"max_queued": 1}), grid.campaign()
    grid.run(60)
    assert grid.count(few) == 1
    grid.start_seconds = 5.0
    grid.run(400)
    queued = [pilot.campaign for pilot in grid.live if not pilot.running]
    assert queued.count(few) <= 1
    assert grid.count(many) == 16


def test_an_idle_cluster_fills_with_16_pilots_within_a_minute():
    grid = FakeGrid()
    grid.campaign()
    grid.run(60)
    assert sum(pilot.running for pilot in grid.live) == 16


def test_two_users_share_a_cluster_and_a_newcomer_soon_has_its_part():
    grid = FakeGrid(cap=8)
    first = grid.campaign("alice")
    grid.run(60)
    assert grid.count(first) == 8
    second = grid.campaign("bob")
    grid.run(120)
    assert (grid.count(first), grid.count(second)) == (4, 4)
    third = grid.campaign("alice")
    grid.run(120)
    assert grid.count(second) == 4, "users first"
    assert (grid.count(first), grid.count(third)) == (2, 2), "then the campaigns of each"


def test_one_place_is_taken_in_turns():
    grid = FakeGrid(cap=1)
    names = [grid.campaign("alice"), grid.campaign("bob"), grid.campaign("bob")]
    has_place = []
    for _ in range(1200):
        grid.second()
        has_place += [pilot.campaign for pilot in grid.live if pilot.running]
    parts = [has_place.count(name) / len(has_place) for name in names]
    assert parts == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
    assert len(has_place) > 0.75 * 1200, "starts cost little"


def test_a_cluster_that_others_use_gets_one_pilot_after_the_other():
    grid = FakeGrid()
    name = grid.campaign()
    grid.run(2)
    for second in range(60):
        own = WORKERS * sum(pilot.running for pilot in grid.live)
        grid.governor.note_load("desi", Load(cpus=100, busy=90.0 + own))
        grid.second()
        assert sum(not pilot.running for pilot in grid.live) <= 1, second
    assert grid.count(name) <= 4
    assert grid.run(LOAD_LASTS_SECONDS + 60).count(name) == 16, "what was known long ago does not count"


def test_no_pilot_is_asked_for_while_no_item_may_be_tried_yet():
    grid = FakeGrid()
    grid.campaign(total=10, next_number=10, waiting=3)
    grid.store.due = grid.now + 300.0
    assert not grid.run(290).asked
    grid.run(20)
    assert grid.asked


def test_a_clock_that_is_set_changes_no_wait():
    wall, passed = [1e9], [50.0]
    now = SteadyClock(lambda: wall[0], lambda: passed[0])
    assert now() == 1e9
    for jump in (-3600.0, 7200.0):
        wall[0] += jump
        passed[0] += 2.0
    assert now() == 1e9 + 4.0
    assert abs(SteadyClock()() - time.time()) < 5.0


def test_a_test_goes_first_and_is_small():
    grid = FakeGrid(cap=2, start_seconds=1.0)
    long = grid.campaign("alice")
    grid.run(30)
    trial = grid.campaign("alice", total=100, options={"test": True}, max_pilots=9)
    grid.run(8)
    assert (grid.count(trial), grid.count(long)) == (1, 1)
    with pytest.raises(GridError, match="100 items"):
        check_test_mode({"test": True}, 101)
    check_test_mode({}, 10**6)


def test_priorities_come_before_parts_among_ones_own():
    grid = FakeGrid(cap=2)
    plain = grid.campaign("alice")
    urgent = grid.campaign("alice", options={"priority": 3})
    grid.run(120)
    assert (grid.count(plain), grid.count(urgent)) == (0, 2)


def test_another_process_is_as_fair():
    grid = FakeGrid(cap=1)
    first, second = grid.campaign("alice"), grid.campaign("bob")
    grid.second()
    [pilot] = grid.live
    assert pilot.campaign == first
    grid.lease(pilot, 50)
    grid.governor.keep()
    grid.restart()
    grid.second()
    assert grid.live[0].campaign == second, "it is its turn, whoever counts"


def test_a_cluster_that_refuses_is_asked_less_and_less():
    grid = FakeGrid()
    grid.campaign()
    grid.refuses = True
    grid.run(600)
    assert grid.asked[1] - grid.asked[0] >= FIRST_PAUSE
    assert len(grid.asked) <= 6


def test_a_cluster_that_never_took_a_pilot_is_closed_after_some_refusals():
    grid = FakeGrid()
    grid.campaign()
    grid.refuses = True
    while len(grid.verdicts) < MOST_REFUSALS:
        grid.second()
    assert grid.verdicts == [False] * (MOST_REFUSALS - 1) + [True]
    assert grid.now < 1000 + 3600


def test_three_dead_starts_close_a_cluster_and_a_good_one_in_between_does_not():
    grid = FakeGrid()
    campaign = grid.campaigns[grid.campaign()]
    ends = []
    for outcomes in (0, 0, 5, 0, 0, 0):
        pilot = grid.started(campaign.id)
        pilot.outcomes = outcomes
        ends.append(grid.governor.note_end(pilot, campaign, "crashed"))
    assert ends == [False] * 5 + [True]
    assert grid.governor.note_end(grid.started(campaign.id), campaign, "environment") is True


def test_bad_items_that_fail_again_do_not_close_a_good_cluster():
    grid = FakeGrid()
    campaign = grid.campaigns[grid.campaign(clusters=["desi", "curnagl"])]
    there, elsewhere = grid.started(campaign.id), grid.started(campaign.id, "curnagl")
    grid.report(there, [False] * 3)
    grid.report(elsewhere, [False] * 3)
    grid.report(there, [True] * 20, failed_before=range(20))
    assert grid.governor.judged(campaign, "desi").value == "open"
    grid.report(there, [True] * 20)
    assert grid.governor.judged(campaign, "desi").value == "quarantined"


def test_a_new_cluster_gets_an_item_for_each_worker_first():
    grid = FakeGrid()
    campaign = grid.campaigns[grid.campaign(clusters=["desi", "curnagl"])]
    there, elsewhere = grid.started(campaign.id), grid.started(campaign.id, "curnagl")
    assert grid.governor.most_items(there, campaign) == WORKERS
    grid.report(there, [True] * 5)
    assert grid.governor.most_items(there, campaign) == WORKERS
    grid.report(there, [True] * 6)
    assert grid.governor.most_items(there, campaign) == 0, "nothing is known of the other cluster"
    grid.now += SUSPECT_SECONDS
    assert grid.governor.most_items(there, campaign) == WORKERS, "that does not last for ever"
    grid.report(elsewhere, [False] * 3)
    assert grid.governor.most_items(elsewhere, campaign) is None
    assert grid.governor.judged(campaign, "desi").value == "quarantined"
    assert grid.governor.judged(campaign, "curnagl").value == "open"
    grid.governor.forget(campaign.id)
    assert grid.governor.judged(campaign, "desi").value == "canary", "a person has mended it"
