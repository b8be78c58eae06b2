"""The control of pilots, on simulated clusters with a simulated clock."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ray_flow.core.cluster_report import Load
from slurm_ray_flow.core.grid.control import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    SOON_SECONDS,
    ControlState,
    Observation,
    Starts,
    pilots_needed,
    share_of_others,
    step,
)
from slurm_ray_flow.core.grid.work import Demand
from slurm_ray_flow.core.slurm.dialect import SLURM
from slurm_ray_flow.core.slurm.site import parse_site
from slurm_recorded import REAL, recorded


class FakeCluster:
    """A fake of a cluster's queue: it starts pilots after a time, as many as it has places for, or refuses them.

    What others have in it is made up; there is no record of a real queue over time.
    """

    def __init__(self, need, most, start_seconds=2.0, places=lambda now: 10**6, refuses=lambda now: False, load=None):
        self.need, self.most, self.start_seconds, self.places, self.refuses = need, most, start_seconds, places, refuses
        self.load = load or (lambda now: None)
        self.now, self.state = 0.0, ControlState()
        self.queued, self.running, self.waits, self.asked = [], [], [], []
        self.rejected = self.preempted = 0
        self.most_queued = 0

    def second(self):
        places = self.places(self.now)
        while len(self.running) > max(places, 0):
            self.running.pop()
            self.preempted += 1
        while self.queued and len(self.running) < places and self.now - self.queued[0] >= self.start_seconds:
            self.waits.append(self.now - self.queued.pop(0))
            self.running.append(self.now)
        active = len(self.queued) + len(self.running)
        seen = Observation(
            now=self.now,
            queued=len(self.queued),
            running=len(self.running),
            need=max(self.need - active, 0),
            unserved=int(not active),
            room=self.most - active,
            longest_wait=self.now - self.queued[0] if self.queued else 0.0,
            waits=tuple(self.waits),
            rejected=self.rejected,
            preempted=self.preempted,
            load=self.load(self.now),
        )
        self.waits, self.rejected, self.preempted = [], 0, 0
        self.state, count = step(self.state, seen)
        self.asked += [self.now] * count
        if count and self.refuses(self.now):
            self.rejected = count
        else:
            self.queued += [self.now] * count
        self.most_queued = max(self.most_queued, len(self.queued))
        assert active + count <= self.most or not count
        self.now += 1.0

    def run(self, seconds):
        for _ in range(int(seconds)):
            self.second()
        return self


@pytest.mark.parametrize("start_seconds", [0.0, 2.0, 5.0, 10.0])
def test_an_idle_cluster_fills_with_16_pilots_within_a_minute(start_seconds):
    cluster = FakeCluster(100, 16, start_seconds).run(60)
    assert len(cluster.running) == 16


def test_a_busy_cluster_has_one_of_ours_in_its_queue():
    cluster = FakeCluster(100, 16, places=lambda now: 0).run(7200)
    assert (len(cluster.queued), len(cluster.asked)) == (1, 1)


def test_places_that_others_take_back_are_not_fought_for():
    cluster = FakeCluster(100, 32, places=lambda now: 16 if now < 600 else 4).run(600)
    assert len(cluster.running) == 16
    before = len(cluster.asked)
    cluster.run(3600)
    assert len(cluster.running) == 4
    assert cluster.state.reference <= 2
    assert len(cluster.asked) - before <= 2


def test_a_loaded_cluster_is_left_to_its_users_until_it_is_idle():
    busy = lambda now: 30 <= now < 600  # noqa: E731
    cluster = FakeCluster(
        100, 16, places=lambda now: 2 if busy(now) else 100, load=lambda now: 0.95 if busy(now) else 0.1
    ).run(30)
    cluster.run(30)
    before = len(cluster.asked)
    cluster.run(540)
    assert len(cluster.asked) - before <= 1, "one of ours waits"
    assert (cluster.state.reference, len(cluster.queued)) == (1, 1)
    assert len(cluster.run(240).running) == 16


def test_a_loaded_cluster_that_starts_pilots_all_the_same_gets_them_one_by_one():
    cluster = FakeCluster(100, 16, load=lambda now: 0.9).run(240)
    assert cluster.most_queued == 1
    assert 4 <= len(cluster.running) <= 9


@pytest.mark.parametrize(
    ("load", "own", "share"),
    [
        (Load(), 2, None), (None, 2, None), (Load(cpus=0, busy=0.0), 0, None),
        (Load(cpus=8, busy=7.6), 6, pytest.approx(0.2)), (Load(cpus=8, busy=1.0), 6, 0.0),
    ],
)  # fmt: skip
def test_our_own_pilots_are_no_load_by_others(load, own, share):
    assert share_of_others(load, own) == share


def test_the_load_of_a_slurm_is_that_of_the_partition_that_pilots_go_to():
    answers = [recorded(name, REAL) for name in ("site-partitions", "site-nodes-busy", "site-version")]
    load = SLURM.site.load(parse_site(*answers), "cpu")
    assert (load.partition, share_of_others(load, 0)) == ("cpu", pytest.approx(load.busy / load.cpus))
    assert share_of_others(load, 0) > 0
    assert share_of_others(load, load.busy) == 0.0


def test_a_cluster_that_refuses_is_asked_less_and_less_and_as_before_once_it_takes_them():
    cluster = FakeCluster(100, 16, refuses=lambda now: now < 4 * 3600).run(4 * 3600)
    pauses = [later - earlier for earlier, later in itertools.pairwise(cluster.asked)]
    assert pauses[0] >= FIRST_PAUSE
    assert all(later >= min(1.9 * earlier, LONGEST_PAUSE) for earlier, later in itertools.pairwise(pauses))
    assert len(cluster.asked) <= 11
    cluster.run(LONGEST_PAUSE + 90)
    assert len(cluster.running) == 16
    assert cluster.state.refusals == 0


def test_refusal_and_preemption_halve_the_reference():
    state = ControlState(reference=8, mean_wait=1.0)
    seen = Observation(now=10.0, queued=0, running=4, need=50)
    refused, count = step(state, Observation(now=10.0, queued=0, running=4, need=50, rejected=1))
    assert (refused.reference, count) == (4, 0)
    preempted, count = step(state, Observation(now=10.0, queued=0, running=4, need=50, preempted=2))
    assert (preempted.reference, count) == (4, 4)
    assert step(state, seen)[1] == 8


def test_the_reference_does_not_grow_while_something_else_is_the_bound():
    cluster = FakeCluster(1000, 4).run(3600)
    assert len(cluster.running) == 4
    assert cluster.state.reference <= 4, "it has not wound up"
    cluster.most = 400
    cluster.run(4)
    assert len(cluster.asked) <= 4 + 4


def test_a_campaign_without_a_pilot_does_not_wait_for_the_next_decision():
    state, count = step(ControlState(), Observation(now=0.0, queued=0, running=0, need=1, unserved=1))
    assert count == 1
    state, count = step(state, Observation(now=1.0, queued=0, running=1, need=1, waits=(1.0,)))
    assert count == 0
    assert step(state, Observation(now=1.5, queued=0, running=1, need=1, unserved=1))[1] == 1


@settings(max_examples=30)
@given(data=st.data(), max_queued=st.integers(0, 20), room=st.none() | st.integers(-2, 30))
def test_never_beyond_any_bound(data, max_queued, room):
    state, now = ControlState(), 0.0
    few = st.integers(0, 30)
    for _ in range(10):
        now += data.draw(st.floats(0.0, 100.0))
        queued, need = data.draw(few), data.draw(few)
        waits = tuple(data.draw(st.lists(st.floats(0.0, 200.0), max_size=4)))
        seen = Observation(
            now, queued, data.draw(few), need, data.draw(st.integers(0, 2)), room, max_queued,
            data.draw(st.floats(0.0, 2000.0)), waits, data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)),
            data.draw(st.none() | st.floats(0.0, 2.0)),
        )  # fmt: skip
        state, count = step(state, seen)
        assert 0 <= count <= need
        assert count <= max(max_queued - queued, 0)
        assert room is None or count <= max(room, 0)
        assert 1 <= state.reference <= max(max_queued, 1)
        assert now < state.pause_until <= now + LONGEST_PAUSE or state.pause_until <= now or not seen.rejected


@pytest.mark.parametrize("seed", range(3))
def test_a_made_up_day_of_a_busy_cluster(seed):
    """Others come and go on 64 places: ours harvest what is free, and few wait while nothing is."""
    chance, others = random.Random(seed), [60]
    for _ in range(24 * 60):
        others.append(min(max(others[-1] + chance.choice([-3, -1, 0, 1, 3]), 20), 64))
    free = [64 - used for used in others]
    cluster, used, possible = FakeCluster(1000, 64, places=lambda now: free[int(now // 60)]), 0, 0
    for second in range(24 * 3600):
        cluster.second()
        used, possible = used + len(cluster.running), possible + free[second // 60]
    assert used >= 0.6 * possible
    assert cluster.most_queued <= 16


def demand(**changes):
    known = {"left": 1000, "unleased": 900, "mean_seconds": 6.0, "workers": 2, "pilots": 0, "waiting": 0, "most": 16}
    return Demand(**{**known, **changes})


def test_how_many_pilots_a_campaign_could_use():
    assert pilots_needed(demand(), None) == 1, "the first one shows how long items take"
    assert pilots_needed(demand(pilots=1, mean_seconds=None), 2.0) == 0
    assert pilots_needed(demand(pilots=1, mean_seconds=None, most=4, at_once=True), 2.0) == 3, "all are waited for"
    assert pilots_needed(demand(pilots=1), 2.0) == 15
    assert pilots_needed(demand(pilots=1, most=4), 2.0) == 3
    assert pilots_needed(demand(pilots=1, left=20), 2.0) == 0, "too little work for another start"
    assert pilots_needed(demand(pilots=1, unleased=0), 2.0) == 0
    assert pilots_needed(demand(pilots=4, left=100), 0.0) == 1
    assert pilots_needed(demand(pilots=4, left=100), 60.0) == 0, "those that run will have done it by then"


def test_starts_that_are_dead_within_a_minute_are_counted_in_a_row():
    starts = Starts()
    for _ in range(2):
        starts = starts.ended(0, 3.0, True)
    assert not starts.too_many
    assert starts.ended(0, None, True).too_many, "one that never began is one, too"
    assert not starts.ended(0, SOON_SECONDS + 600, True).too_many
    assert starts.ended(5, 3.0, True) == starts.ended(0, 3.0, False) == Starts()
