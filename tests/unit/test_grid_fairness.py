"""Fair shares of a cluster: the invariants that users are promised, whatever the order of leases and arrivals."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ray_flow.core.grid.fairness import (
    HALF_LIFE,
    LONGEST_TURN,
    SHORTEST_TURN,
    Claim,
    Ledger,
    giver_of_place,
    jain,
    turn_seconds,
)

WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 3.0])
COSTS = st.floats(0.1, 30.0)


def claims_of(users, campaigns=1, **fields):
    return [Claim(f"u{user}", f"u{user}c{number}", **fields) for user in range(users) for number in range(campaigns)]


def serve(ledger, waiting, cost, now=0.0):
    claim = ledger.next_of(waiting)
    ledger.charge(claim, cost, now)
    return claim


@settings(max_examples=60)
@given(
    weights=st.lists(WEIGHTS, min_size=2, max_size=5), costs=st.lists(COSTS, min_size=1, max_size=150), data=st.data()
)
def test_i1_two_users_with_work_differ_by_a_bundle_of_each_at_most(weights, costs, data):
    claims = [Claim(f"u{n}", f"c{n}", user_weight=weight) for n, weight in enumerate(weights)]
    ledger, got, began = Ledger(), [0.0] * len(weights), data.draw(st.integers(0, len(costs) - 1))
    ledger.update(claims, 0.0)
    largest = max(costs)
    for now, cost in enumerate(costs):
        if now == began:
            got = [0.0] * len(weights)
        ledger.decay(now * 1000.0)
        got[claims.index(serve(ledger, claims, cost))] += cost
        for a, weight in enumerate(weights):
            for b, other in enumerate(weights):
                assert abs(got[a] / weight - got[b] / other) <= largest / weight + largest / other + 1e-6


@settings(max_examples=60)
@given(users=st.integers(1, 6), campaigns=st.integers(1, 4), before=st.integers(0, 60), data=st.data())
def test_i2_a_campaign_that_begins_to_wait_gets_a_lease_soon(users, campaigns, before, data):
    claims = claims_of(users, campaigns)
    ledger = Ledger()
    ledger.update(claims, 0.0)
    for _ in range(before):
        serve(ledger, claims, 10.0)
    user = data.draw(st.integers(0, users))
    new = Claim(f"u{user}", "new")
    claims.append(new)
    ledger.update(claims, 1.0)
    served = [serve(ledger, claims, 10.0)]
    while served[-1] != new:
        served.append(serve(ledger, claims, 10.0))
    own, everyone = sum(claim.user == new.user for claim in claims), len({claim.user for claim in claims})
    assert sum(claim.user == new.user for claim in served) <= own, "of its user's leases"
    assert len(served) <= everyone * own
    if before >= users * campaigns:  # (of several that begin at the same time, all but one wait for the others)
        assert len(served) <= everyone + own


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.booleans(), COSTS), max_size=40))
def test_i3_who_waits_is_served_as_long_as_anyone_waits(steps):
    ledger, claims = Ledger(), claims_of(4)
    waiting = set()
    for user, begins, cost in steps:
        (waiting.add if begins else waiting.discard)(claims[user])
        ledger.update(waiting, 0.0)
        if waiting:
            assert serve(ledger, list(waiting), cost) in waiting
        else:
            assert ledger.next_of([]) is None


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks.fairness import Simulation

    yield Simulation
    sys.modules.pop("benchmarks.fairness", None)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_simulated_hour_is_fair_idles_never_and_loses_nothing(simulation, seed):
    found = simulation(users=50, workers=40, seconds=2 * 3600.0, seed=seed).run()
    assert len(found.jain) > 60
    assert min(found.jain) >= 0.95
    assert found.waits
    assert max(found.waits) <= found.longest_bundle, "a newcomer waits for one bundle at most"
    assert found.idle == 0
    assert found.lost < 1.0, "I4: what is waiting, leased and done is all that there is"


def test_a_newcomer_comes_next_behind_one_who_had_millions():
    ledger, [first, newcomer] = Ledger(), claims_of(2)
    ledger.update([first], 0.0)
    for _ in range(1000):
        serve(ledger, [first], 1000.0)
    ledger.update([first, newcomer], 1.0)
    assert serve(ledger, [first, newcomer], 30.0) == newcomer
    assert [serve(ledger, [first, newcomer], 30.0) for _ in range(4)].count(newcomer) == 2, (
        "what it did not use is gone"
    )


def test_who_went_ahead_is_still_ahead_when_it_comes_back_and_the_lead_halves_in_a_day():
    ledger, [first, other] = Ledger(), claims_of(2)
    ledger.update([first, other], 0.0)
    serve(ledger, [other], 1.0)
    serve(ledger, [first], 1.0)
    ledger.correct(first, 1000.0)
    ledger.update([other], 0.0)
    lead = ledger.users.accounts["u0"].virtual - ledger.users.base
    assert lead == pytest.approx(1000.0)
    ledger.update([first, other], HALF_LIFE)
    assert ledger.users.accounts["u0"].virtual - ledger.users.base == pytest.approx(500.0, abs=1.0)


def test_an_estimate_that_was_wrong_is_corrected():
    ledger, [first, other] = Ledger(), claims_of(2)
    ledger.update([first, other], 0.0)
    assert serve(ledger, [first, other], 100.0) == first
    ledger.correct(first, -90.0)
    assert serve(ledger, [first, other], 20.0) == other
    assert ledger.next_of([first, other]) == first


def test_what_is_on_its_way_counts():
    ledger, claims = Ledger(), claims_of(2)
    ledger.update(claims, 0.0)
    ledger.charge(claims[1], 5.0, 0.0)
    assert ledger.next_of(claims) == claims[0]
    ledger.expect(claims[0], 30.0)
    assert ledger.next_of(claims) == claims[1]
    ledger.update(claims, 1.0, {"u0c0": 2.0})
    assert ledger.next_of(claims) == claims[0]


def test_a_newcomer_does_not_begin_behind_what_can_be_taken_back():
    ledger, [first, newcomer] = Ledger(), claims_of(2)
    ledger.update([first], 0.0)
    ledger.charge(first, 100.0, 0.0)
    ledger.update([first, newcomer], 1.0, {first.campaign: -90.0})
    ledger.charge(first, 10.0, 2.0)
    ledger.correct(first, -90.0)
    ledger.update([first, newcomer], 3.0)
    assert ledger.is_ahead(first, newcomer)
    assert ledger.next_of([first, newcomer]) == newcomer


def test_among_ones_own_tests_go_first_then_priorities_then_parts_by_weight():
    plain, heavy = Claim("u", "plain"), Claim("u", "heavy", weight=3.0)
    urgent, trial = Claim("u", "urgent", priority=1), Claim("u", "trial", test=True)
    ledger = Ledger()
    ledger.update([plain, heavy, urgent, trial], 0.0)
    for _ in range(5):
        assert serve(ledger, [plain, heavy, urgent, trial], 10.0) == trial
        assert serve(ledger, [plain, heavy, urgent], 10.0) == urgent
    served = [serve(ledger, [plain, heavy], 10.0) for _ in range(40)]
    assert served.count(heavy) == pytest.approx(30, abs=1)


def held(user, cores, wanted=0, **fields):
    return Claim(user, f"{user}'s", held=cores, wanted=wanted, **fields)


def owed(*claims, served=()):
    ledger = Ledger()
    ledger.update(claims, 0.0)
    for name in served:
        ledger.charge(next(claim for claim in claims if claim.user == name), 10.0, 0.0)
    return [claim.user for claim in giver_of_place(ledger, claims, claims[-1])]


def test_one_that_is_ahead_owes_a_place_until_shares_are_equal():
    assert owed(held("a", 8.0), held("b", 0.0, 1), served=["a"]) == ["a"]
    assert owed(held("a", 5.0), held("b", 3.0, 1), served=["a"]) == ["a"]
    assert owed(held("a", 4.0), held("b", 4.0, 1), served=["a", "a"]) == [], "shares have settled"
    assert owed(held("a", 8.0), held("b", 0.0, 1), served=["b"]) == [], "it is not ahead"
    assert owed(held("a", 1.0), held("c", 1.0), held("b", 0.0, 1), served=["a", "a", "c"]) == ["a", "c"]
    assert owed(held("a", 4.0, user_weight=3.0), held("b", 2.0, 1), served=["a"]) == []


def test_two_campaigns_of_one_user_owe_each_other_a_place_and_tests_need_not_wait():
    first, second = Claim("u", "1", held=1.0), Claim("u", "2", wanted=1)
    ledger = Ledger()
    ledger.update([first, second], 0.0)
    ledger.charge(first, 1.0, 0.0)
    assert giver_of_place(ledger, [first, second], second) == [first]
    ledger.charge(second, 5.0, 0.0)
    assert giver_of_place(ledger, [first, second], second) == []
    assert giver_of_place(ledger, [first, second], Claim("u", "2", test=True)) == [first]
    assert giver_of_place(ledger, [first, second], Claim("u", "2", priority=-1)) == []


@given(st.floats(0.0, 1e6))
def test_a_turn_is_long_beside_a_start_and_ends(start):
    assert SHORTEST_TURN <= turn_seconds(start) <= LONGEST_TURN


def test_jain_s_index():
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


@given(st.lists(st.tuples(st.integers(0, 5), COSTS), max_size=40), st.integers(1, 5))
def test_another_process_goes_on_as_fairly(leases, active):
    claims, ledger = claims_of(3, 2), Ledger()
    ledger.update(claims, 0.0)
    for number, cost in leases:
        ledger.charge(claims[number], cost, 0.0)
    ledger.update(claims[:active], 0.0)
    later = Ledger()
    later.restore(ledger.accounts())
    later.update(claims[:active], 0.0)
    newcomer = Claim("new", "new")
    for one in (ledger, later):
        one.update([*claims[:active], newcomer], 0.0)
    for queue, other in [
        (ledger.users, later.users),
        *((ledger.campaigns[u], later.campaigns[u]) for u in ("u0", "new")),
    ]:
        told = {name: account.virtual for name, account in queue.telling.items()}
        assert {name: account.virtual for name, account in other.telling.items()} == pytest.approx(told)
