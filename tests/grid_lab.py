"""Databases for the grid's store, and a model of what the store promises, for tests."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import postgres
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ClusterShare, ItemOutcome, ItemRetry, ItemState
from slurm_ray_flow.grid.store import Store


def campaign(total: int = 0, **fields: Any) -> Campaign:
    """A campaign on two clusters."""
    shares = (ClusterShare("desi", 0, '{"root": "/r"}', {"cpus": 4}), ClusterShare("curnagl", 1, "{}"))
    blank = {"id": uuid.uuid4().hex, "name": "sums", "user": "alice", "function": "add", "clusters": shares}
    return Campaign(**{**blank, "total": total, **fields})


def value(number: int, bundle: int, offset: int = 0, length: int = 40) -> ItemOutcome:
    """The outcome of an item that has a value."""
    return ItemOutcome(number, bundle, ItemState.SUCCEEDED, 0.5, offset, length)


@contextlib.contextmanager
def schema(url: str) -> Iterator[str]:
    """The address of a part of a PostgreSQL database that has nothing in it."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    yield f"{url}?options=-csearch_path%3D{name}"
    with psycopg.connect(url) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE")


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of the caller's own."""
    with postgres.postgres() as url:
        yield url


def try_random_ways(store: Store, examples: int) -> None:
    """Whatever the order of leases, results, returns and cancels: each item counts once, its first outcome stays."""

    class OnThisStore(Ways):
        def __init__(self) -> None:
            super().__init__(store)

    # (A smaller example would be found within minutes, beyond the time of a test.)
    generate = (Phase.explicit, Phase.reuse, Phase.generate)
    few = settings(max_examples=examples, stateful_step_count=40, deadline=None, phases=generate)
    run_state_machine_as_test(OnThisStore, settings=few)


NEW, WAITING, LEASED, ENDED = "new", "waiting", "leased", "ended"


class Ways(RuleBasedStateMachine):
    """One campaign in a store, beside a model of it in plain dictionaries."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.made = store, campaign()
        self.state: dict[int, tuple[str, int]] = {}
        self.not_before: dict[int, float] = {}
        self.ends: dict[int, ItemState] = {}
        self.bundles: dict[int, list[int]] = {}
        self.now, self.offset, self.size = 1000.0, 0, 0
        self.cancelled, self.finished = False, False
        self.interrupted: set[int] = set()

    @initialize()
    def begin(self) -> None:
        self.store.add_campaign(self.made)
        self.pilot = self.store.add_pilot(self.made.id, "desi", 2, self.now)

    @rule(count=st.integers(1, 12))
    @precondition(lambda self: not self.cancelled)
    def add(self, count: int) -> None:
        first = self.store.add_items(self.made.id, count)
        assert first == len(self.state)
        self.state.update(dict.fromkeys(range(first, first + count), (NEW, 0)))

    @rule(size=st.integers(1, 9), passed=st.integers(0, 20))
    def lease(self, size: int, passed: int) -> None:
        self.now += passed
        again = [n for n, (state, _) in self.state.items() if state == WAITING and n not in self.interrupted]
        due = [number for number in again if self.not_before[number] <= self.now]
        new = [number for number, (state, _) in self.state.items() if state == NEW]
        bundle = self.store.lease(self.pilot, self.made.id, size, self.now)
        if self.cancelled or not (new or due):
            assert bundle is None
            return
        assert bundle is not None
        numbers = list(bundle)
        assert bundle.id not in self.bundles
        assert len(numbers) == bundle.size == min(size, len(new) + len(due))
        fresh = [number for number in numbers if number in new]
        assert fresh == new[: len(fresh)]
        assert len(fresh) == min(size, len(new))
        assert set(numbers) - set(fresh) <= set(due)
        self.bundles[bundle.id] = numbers
        self.state.update(dict.fromkeys(numbers, (LEASED, bundle.id)))

    @rule(size=st.integers(1, 9))
    def lease_interrupted(self, size: int) -> None:
        waiting = [n for n, (state, _) in self.state.items() if state == WAITING and n in self.interrupted]
        bundle = self.store.lease_interrupted(self.pilot, self.made.id, size)
        expected = [] if self.cancelled else sorted(waiting)[:size]
        assert list(bundle or ()) == expected
        if bundle:
            self.bundles[bundle.id] = expected
            self.state.update(dict.fromkeys(expected, (LEASED, bundle.id)))

    @rule(data=st.data())
    @precondition(lambda self: any(self.bundles.values()))
    def results(self, data: st.DataObject) -> None:
        """Lines of any bundle that ever was: such as come late, come twice, or name another bundle's item."""
        pairs = st.tuples(st.integers(0, len(self.state)), st.sampled_from([*self.bundles, 1 << 40]))
        own = [(number, bundle) for bundle, numbers in self.bundles.items() for number in numbers]
        some = st.lists(st.one_of(st.sampled_from(own), st.sampled_from(own), pairs), max_size=8)
        states = st.sampled_from([ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CRASHED])
        outcomes = [ItemOutcome(n, b, data.draw(states), 1.0, self.size, 9) for n, b in data.draw(some)]
        retries = [
            ItemRetry(
                n,
                b,
                data.draw(st.booleans()),
                self.now + data.draw(st.sampled_from([0, 10, 60])),
                error="no",
                interrupted=data.draw(st.integers(0, 4)) == 0,
            )
            for n, b in data.draw(some)
        ]
        self.offset, self.size = self.offset + 10, self.size + 100
        told = self.store.record(self.pilot, self.made.id, self.offset, outcomes, retries, self.size, self.now)
        new = sum(self._ended(outcome) for outcome in outcomes)
        again = sum(self._retried(retry) for retry in retries)
        assert (told.new, told.duplicates) == (new, len(outcomes) + len(retries) - new - again)
        assert told.ended == all(state == ENDED for state, _ in self.state.values())

    def _ended(self, outcome: ItemOutcome) -> bool:
        number = outcome.number
        if number not in self.bundles.get(outcome.bundle, ()) or self.state[number][0] == ENDED:
            return False
        self.state[number], self.ends[number] = (ENDED, 0), outcome.state
        return True

    def _retried(self, retry: ItemRetry) -> bool:
        if self.state.get(retry.number) != (LEASED, retry.bundle) or retry.number not in self.bundles[retry.bundle]:
            return False
        if retry.interrupted and not self.cancelled:
            self.interrupted.add(retry.number)
        self._return(retry.number, retry.not_before)
        return True

    def _return(self, number: int, not_before: float = 0.0) -> None:
        if self.cancelled:
            self.state[number], self.ends[number] = (ENDED, 0), ItemState.CANCELLED
        else:
            self.state[number], self.not_before[number] = (WAITING, 0), not_before

    @rule(data=st.data())
    @precondition(lambda self: self.bundles)
    def give_back(self, data: st.DataObject) -> None:
        lost = data.draw(st.lists(st.sampled_from(list(self.bundles)), max_size=3))
        back = [number for number, (state, bundle) in self.state.items() if state == LEASED and bundle in lost]
        assert self.store.give_back(lost) == len(back)
        assert self.store.give_back(lost) == 0
        for number in back:
            self._return(number)

    @rule()
    def pause(self) -> None:
        assert self.store.set_campaign_state(self.made.id, CampaignState.PAUSED) is not self.cancelled
        assert self.store.lease(self.pilot, self.made.id, 5, self.now + 1e6) is None
        assert self.store.set_campaign_state(self.made.id, CampaignState.ACTIVE) is not self.cancelled

    @rule(data=st.data())
    @precondition(lambda self: self.state and not self.cancelled)
    def cancel_items(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(0, len(self.state) - 1), max_size=3, unique=True))
        places = {number: (self.size + 9 * place, 9) for place, number in enumerate(chosen)}
        self.size += 100
        gone = [number for number in chosen if self.state[number][0] != ENDED]
        assert self.store.cancel_items(self.made.id, places, self.size) == len(gone)
        for number in gone:
            self.state[number], self.ends[number] = (ENDED, 0), ItemState.CANCELLED

    @rule(really=st.integers(0, 3))
    def cancel(self, really: int) -> None:
        if really:
            return
        assert self.store.cancel(self.made.id, self.now) is not self.cancelled
        self.cancelled = True
        for number, (state, _) in self.state.items():
            if state in {NEW, WAITING}:
                self.state[number], self.ends[number] = (ENDED, 0), ItemState.CANCELLED

    @rule(data=st.data())
    @precondition(lambda self: self.state)
    def resubmit(self, data: st.DataObject) -> None:
        only = data.draw(st.none() | st.lists(st.sampled_from(list(self.state)), max_size=6))
        if self.cancelled and any(state == LEASED for state, _ in self.state.values()):
            with pytest.raises(GridError, match="being cancelled"):
                self.store.resubmit(self.made.id, only, self.size)
            return
        wanted = {
            number
            for number, end in self.ends.items()
            if end is not ItemState.SUCCEEDED and (only is None or number in only)
        }
        before = self.store.campaign(self.made.id).resubmitted
        assert self.store.resubmit(self.made.id, only, self.size) == len(wanted)
        kept = self.store.campaign(self.made.id)
        assert kept.resubmitted == before + len(wanted)
        if wanted:
            self.cancelled = self.finished = False
        for number in wanted:
            self.interrupted.discard(number)
            del self.ends[number]
            self.state[number], self.not_before[number] = (WAITING, 0), 0.0
            if number >= kept.next_number:  # as if it had never been leased
                self.state[number] = (NEW, 0)
                for numbers in self.bundles.values():
                    numbers[:] = [one for one in numbers if one != number]

    @rule()
    def finish_cancel(self) -> None:
        self.store.finish_cancel(self.made.id, self.now)
        if not self.cancelled:
            return
        self.finished = True
        for number, (state, _) in self.state.items():
            if state == LEASED:
                self.state[number], self.ends[number] = (ENDED, 0), ItemState.CANCELLED

    @invariant()
    def each_item_is_counted_once(self) -> None:
        kept, counts = self.store.campaign(self.made.id), Counter(state for state, _ in self.state.values())
        ends = Counter(self.ends.values())
        live = [bundle for bundle in self.store.live_bundles() if bundle.campaign == self.made.id]
        assert kept.total == len(self.state) == kept.unleased + kept.leased + kept.ended
        assert kept.leased == counts[LEASED] == sum(bundle.size - bundle.ended for bundle in live)
        ahead = sum(state != NEW for number, (state, _) in self.state.items() if number >= kept.next_number)
        assert (kept.unleased, kept.waiting) == (counts[NEW] + counts[WAITING], counts[WAITING] - ahead)
        assert kept.succeeded == ends[ItemState.SUCCEEDED]
        assert kept.failed == ends[ItemState.FAILED] + ends[ItemState.CRASHED]
        assert kept.cancelled == ends[ItemState.CANCELLED]
        assert (kept.ended_at is not None) == self.finished

    @invariant()
    def each_item_is_shown_as_it_is(self) -> None:
        shown = self.store.items(self.made.id, 0, 1000)
        names = {NEW: "waiting", WAITING: "waiting", LEASED: "leased"}
        expected = [
            names.get(state) or self.ends[number].name.lower() for number, (state, _) in sorted(self.state.items())
        ]
        assert [row.state for row in shown] == expected
        assert [row.number for row in shown] == list(range(len(self.state)))
        uncancelled = {number for number, end in self.ends.items() if end is not ItemState.CANCELLED}
        ended = self.store.ended_among(self.made.id, range(len(self.state)))
        assert uncancelled <= ended <= self.ends.keys()

    @invariant()
    def no_item_is_in_two_live_bundles(self) -> None:
        live = self.store.live_bundles(self.pilot)
        in_hand = {number: bundle for number, (state, bundle) in self.state.items() if state == LEASED}
        assert {bundle.id for bundle in live} == set(in_hand.values())
