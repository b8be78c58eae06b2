"""The grid's store keeps the same promises in a SQLite file and in PostgreSQL."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

import grid_lab
import postgres
from grid_lab import campaign, value
from slurm_ray_flow.core.errors import GridError, UnknownCampaignError
from slurm_ray_flow.core.grid.fairness import Account
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, Drain, ItemOutcome, ItemRetry, ItemState
from slurm_ray_flow.grid.store import Store
from slurm_ray_flow.grid.tables import VERSION_TABLE, metadata

needs_postgres = pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed")


@pytest.fixture(scope="module")
def postgresql():
    with grid_lab.postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgres)])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/grid's folder/grid.db"
    else:
        with grid_lab.schema(request.getfixturevalue("postgresql")) as address:
            yield address


@pytest.fixture
def opened():
    """Opens stores, and closes them: PostgreSQL waits for its last connection before it ends."""
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(contextlib.closing(Store(url)))


@pytest.fixture
def store(url, opened):
    made = opened(url)
    made.migrate()
    return made


@pytest.fixture
def kept(store) -> Campaign:
    """A campaign of ten items."""
    made = campaign(10, created=5.0)
    store.add_campaign(made)
    return made


@pytest.fixture
def pilot(store, kept) -> int:
    return store.add_pilot(kept.id, "desi", 4, 10.0)


def test_any_order_of_leases_results_returns_and_cancels(store):
    grid_lab.try_random_ways(store, 12 if store._database.is_sqlite else 4)


def test_a_campaign_is_kept_as_it_was_given(store):
    made = campaign(
        3,
        name="a 'name' \\ % é",
        options={"cpus": 2, "text": "é\0"},
        weight=0.1,
        state=CampaignState.PAUSED,
        created=1.7e9 + 0.123456,
        retries=2,
        max_failures=7,
        max_pilots=5,
        outcomes_size=1 << 40,
    )
    store.add_campaign(made)
    assert store.campaign(made.id) == store.campaign(made.id[:5]) == made
    assert store.campaigns() == store.campaigns([CampaignState.PAUSED]) == [made]
    assert store.campaigns([CampaignState.ACTIVE]) == []
    store.set_flow_run(made.id, "f-1")
    store.set_cluster(made.id, "curnagl", state="quarantined", reason="it fails there", mean_seconds=0.25)
    total = store.campaign(made.id).total
    assert not store.set_campaign_state(made.id, CampaignState.SUCCEEDED, total=total - 1), "one was added meanwhile"
    assert store.set_campaign_state(made.id, CampaignState.FAILED, "too many failures", 9.0, total)
    assert not store.set_campaign_state(made.id, CampaignState.ACTIVE)
    desi, curnagl = made.clusters
    curnagl = dataclasses.replace(curnagl, state="quarantined", reason="it fails there", mean_seconds=0.25)
    ended = {"state": CampaignState.FAILED, "reason": "too many failures", "ended_at": 9.0}
    assert store.campaign(made.id) == dataclasses.replace(made, **ended, flow_run_id="f-1", clusters=(desi, curnagl))
    with pytest.raises(GridError, match="elsewhere"):
        store.set_cluster(made.id, "elsewhere", state="open")


def test_campaigns_are_listed_the_newest_first_and_found_by_their_beginning(store):
    ids = ["aa" + "0" * 30, "ab" + "0" * 30, "b_" + "0" * 30]
    for created, name in enumerate(ids):
        store.add_campaign(campaign(id=name, created=created))
    assert [one.id for one in store.campaigns()] == ids[::-1]
    assert store.campaign("aa").id == ids[0]
    for wrong in ("a", "", "c", "%", "b%", "_", "aa" + "0" * 31):
        with pytest.raises(UnknownCampaignError):
            store.campaign(wrong)
    with pytest.raises(GridError):
        store.add_campaign(campaign(id=ids[0]))


def test_unknown_campaigns_are_told(store, pilot):
    nobody = "f" * 32
    for use in (
        lambda: store.add_items(nobody, 1),
        lambda: store.lease(pilot, nobody, 1, 0.0),
        lambda: store.record(pilot, nobody, 0, [], [], 0, 0.0),
        lambda: store.cancel(nobody, 0.0),
        lambda: store.items(nobody, 0, 1),
        lambda: store.ended_among(nobody, [1]),
        lambda: store.add_pilot(nobody, "desi", 1, 0.0),
    ):
        with pytest.raises(UnknownCampaignError):
            use()


def test_fresh_items_go_first_and_those_that_failed_least(store, kept, pilot):
    first = store.lease(pilot, kept.id, 4, 20.0)
    retries = [
        ItemRetry(3, first.id, True, 30.0),
        ItemRetry(1, first.id, False, 90.0),
        ItemRetry(0, first.id, False, 25.0),
    ]
    store.record(pilot, kept.id, 1, [], retries, 0, 20.0)
    second = store.lease(pilot, kept.id, 5, 40.0)
    assert list(second) == [4, 5, 6, 7, 8]
    assert list(store.lease(pilot, kept.id, 2, 40.0)) == [0, 9]
    third = store.lease(pilot, kept.id, 5, 40.0)
    assert list(third) == [3]
    assert store.lease(pilot, kept.id, 5, 40.0) is None
    store.record(pilot, kept.id, 2, [], [ItemRetry(3, third.id, True, 41.0)], 0, 40.0)
    assert store.attempts(kept.id, range(10)) == {0: (1, 0), 1: (1, 0), 3: (2, 2)}
    assert store.attempts(kept.id, [0, 2, 3]) == {0: (1, 0), 3: (2, 2)}
    assert store.attempts(kept.id, [1, 1 << 40]) == {1: (1, 0)}
    assert list(store.lease(pilot, kept.id, 1, 99.0)) == [1]
    assert list(store.lease(pilot, kept.id, 1, 99.0)) == [3]


def test_the_first_outcome_stays(store, kept, pilot):
    bundle = store.lease(pilot, kept.id, 10, 20.0)
    told = store.record(pilot, kept.id, 100, [value(2, bundle.id, 0, 50), value(2, bundle.id, 50, 60)], [], 110, 21.0)
    assert (told.new, told.duplicates, told.ended) == (1, 1, False)
    failed = ItemOutcome(2, bundle.id, ItemState.FAILED, 9.0, 110, 5, "ValueError")
    assert store.record(pilot, kept.id, 200, [failed], [], 115, 22.0).duplicates == 1
    assert store.outcome_of(kept.id, 2) == (0, 50, ItemState.SUCCEEDED)
    assert store.outcome_of(kept.id, 3) is None
    assert store.ended_among(kept.id, [1, 2, 3]) == {2}
    now = store.campaign(kept.id)
    assert (now.succeeded, now.failed, now.outcomes_size) == (1, 0, 115)
    [shown] = store.pilots(kept.id)
    assert (shown.results_offset, shown.succeeded, shown.failed) == (200, 1, 0)


def test_an_outcome_that_comes_after_its_bundle_was_given_back_counts_where_the_item_is_now(store, kept, pilot):
    lost = store.lease(pilot, kept.id, 10, 20.0)
    assert store.give_back([lost.id]) == 10
    assert store.record(pilot, kept.id, 1, [value(0, lost.id)], [], 40, 20.0).new == 1
    other = store.lease(pilot, kept.id, 2, 20.0)
    assert list(other) == [1, 2]
    assert store.record(pilot, kept.id, 2, [value(1, lost.id)], [ItemRetry(2, lost.id, False, 0.0)], 80, 20.0).new == 1
    [live] = store.live_bundles()
    assert (live.id, live.ended) == (other.id, 1)
    assert store.record(pilot, kept.id, 3, [value(1, other.id), value(2, other.id)], [], 120, 20.0).duplicates == 1
    assert store.live_bundles() == []


def test_what_a_lost_bundle_has_no_more_is_not_given_back(store, kept, pilot):
    lost = store.lease(pilot, kept.id, 10, 20.0)
    store.record(pilot, kept.id, 1, [value(0, lost.id)], [ItemRetry(n, lost.id, False, 0.0) for n in (1, 2)], 40, 20.0)
    other = store.lease(pilot, kept.id, 1, 20.0)
    assert list(other) == [1]
    assert store.give_back([lost.id, 1 << 40]) == 7
    assert store.live_bundles() == [other]
    assert [row.state for row in store.items(kept.id, 0, 3)] == ["succeeded", "leased", "waiting"]


def test_what_a_cancelled_campaign_gets_back_is_cancelled(store, kept, pilot):
    first = store.lease(pilot, kept.id, 4, 20.0)
    store.record(pilot, kept.id, 1, [], [ItemRetry(0, first.id, False, 0.0)], 0, 20.0)
    store.give_back([first.id])
    again, other = store.lease(pilot, kept.id, 7, 20.0), store.lease(pilot, kept.id, 1, 20.0)
    assert (list(again), list(other)) == ([1, 4, 5, 6, 7, 8, 9], [2])
    store.cancel(kept.id, 30.0)
    assert store.give_back([again.id, other.id]) == 8
    assert (store.campaign(kept.id).cancelled, store.campaign(kept.id).waiting) == (10, 0)
    assert {row.state for row in store.items(kept.id, 0, 10)} == {"cancelled"}


def test_the_last_outcome_ends_all(store, kept, pilot):
    bundle = store.lease(pilot, kept.id, 20, 20.0)
    outcomes = [value(number, bundle.id) for number in range(8)]
    crash = ItemOutcome(8, bundle.id, ItemState.CRASHED, 1.0, 0, 9, "killed\0 by \udcff " + "x" * 10_000)
    assert not store.record(pilot, kept.id, 1, [*outcomes, crash], [], 400, 20.0).ended
    assert store.record(pilot, kept.id, 2, [value(9, bundle.id)], [], 440, 20.0).ended
    row = store.items(kept.id, 8, 1)[0]
    assert (row.state, row.attempts, row.crashes, row.pilot) == ("crashed", 1, 1, pilot)
    assert row.error.startswith("killed")
    assert len(row.error) < 1000
    assert store.live_bundles() == []


def test_a_cancelled_campaign_keeps_what_still_comes_until_it_is_finished(store, kept, pilot):
    bundle = store.lease(pilot, kept.id, 4, 20.0)
    store.record(pilot, kept.id, 1, [], [ItemRetry(0, bundle.id, False, 0.0)], 0, 20.0)
    assert store.cancel(kept.id, 30.0)
    assert not store.cancel(kept.id, 31.0)
    assert (store.campaign(kept.id).cancelled, store.campaign(kept.id).leased) == (7, 3)
    assert store.lease(pilot, kept.id, 4, 40.0) is None
    assert (
        store.record(pilot, kept.id, 2, [value(1, bundle.id)], [ItemRetry(2, bundle.id, False, 0.0)], 40, 40.0).new == 1
    )
    store.finish_cancel(kept.id, 50.0)
    store.finish_cancel(kept.id, 60.0)
    assert store.record(pilot, kept.id, 3, [value(3, bundle.id)], [], 80, 60.0).duplicates == 1
    assert [row.state for row in store.items(kept.id, 0, 20)] == ["cancelled", "succeeded", *["cancelled"] * 8]
    now = store.campaign(kept.id)
    assert (now.state, now.cancelled, now.ended, now.ended_at) == (CampaignState.CANCELLED, 9, 10, 50.0)
    with pytest.raises(GridError, match="ended"):
        store.add_items(kept.id, 1)


def test_many_at_once_never_lease_the_same_item(url, opened, store):
    made = campaign(2000)
    store.add_campaign(made)
    other, taken, wrong = opened(url), [], []

    def take(ones: Store) -> None:
        try:
            pilot = ones.add_pilot(made.id, "desi", 1, 0.0)
            while bundle := ones.lease(pilot, made.id, 17, 0.0):
                taken.extend(bundle)
                ones.record(pilot, made.id, bundle.id, [value(n, bundle.id) for n in bundle], [], 0, 0.0)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=take, args=(ones,)) for ones in (store, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert sorted(taken) == list(range(2000))
    assert store.campaign(made.id).succeeded == 2000


def test_pilots_are_listed_and_changed(store, kept, pilot):
    another = store.add_pilot(kept.id, "curnagl", 2, 11.0)
    store.update_pilot(pilot, run_id="r-1", state="running", started_at=12.0)
    store.update_pilot(another, state="ended", ended_at=13.0, cause="lost", message="gone\0")
    assert [one.id for one in store.pilots()] == [one.id for one in store.pilots(kept.id)] == [pilot, another]
    [live], [ended] = store.pilots(live=True), store.pilots(live=False)
    assert (live.id, live.run_id, live.state, live.started_at, live.campaign) == (
        pilot,
        "r-1",
        "running",
        12.0,
        kept.id,
    )
    assert (ended.cause, ended.ended_at, ended.cluster, ended.workers) == ("lost", 13.0, "curnagl", 2)
    with pytest.raises(TypeError, match="succeeded"):
        store.update_pilot(pilot, succeeded=5)
    assert [bundle.pilot for bundle in [store.lease(another, kept.id, 1, 0.0), *store.live_bundles(another)]] == [
        another
    ] * 2
    assert store.live_bundles(pilot) == []


def test_usage_is_kept_until_it_is_replaced(store, kept):
    first = {("alice", ""): Account(7.5, 2.0, 100.0), ("alice", kept.id): Account(3.25, 1.0, 100.0)}
    store.keep_usage("desi", first)
    store.keep_usage("cur'nagl", {("bob\0", ""): Account(1.0, 1.0, 1.0)})
    assert store.usage()["desi"] == first
    store.keep_usage("desi", {("alice", ""): Account(9.0, 2.0, 200.0)})
    assert store.usage()["desi"] == {("alice", ""): Account(9.0, 2.0, 200.0)}
    assert set(store.usage()) == {"desi", "cur'nagl"}
    store.keep_usage("desi", first)
    store.delete_campaign(kept.id)
    assert set(store.usage()["desi"]) == {("alice", "")}


def test_events_of_one_kind_are_closed_together_with_their_count(store, kept):
    opened = [store.add_event(kept.id, "desi", "warning", "connection", "gone", "no route", 1, n) for n in range(3)]
    assert opened == [True, False, False]
    store.add_event(kept.id, "desi", "error", "error", "gone", "another", 1, 1.0)
    assert store.close_events(kept.id, "desi", "connection") == 3
    assert store.close_events(kept.id, "desi", "connection") == 0
    assert [event.code for event in store.events(kept.id)] == ["error"]


def test_events_of_one_kind_are_one_with_a_count(store, kept):
    for count in (1, 2):
        store.add_event(kept.id, "desi", "error", "item_failed", "ValueError", f"{count} failed", count, 10.0 * count)
    store.add_event("", "desi", "warning", "unreachable", "", "no route", 1, 5.0)
    [failed, unreachable] = store.events()
    assert (failed.count, failed.first_at, failed.last_at, failed.message) == (3, 10.0, 20.0, "2 failed")
    assert (unreachable.campaign, unreachable.count) == ("", 1)
    assert store.close_event(failed.id)
    assert not store.close_event(failed.id)
    store.add_event(kept.id, "desi", "error", "item_failed", "ValueError", "again", 1, 30.0)
    assert [event.count for event in store.events(kept.id)] == [1]
    assert [event.count for event in store.events(kept.id, open_only=False)] == [1, 3]


def test_a_drained_cluster_is_one_of_each_campaign_until_it_is_resumed(store, kept):
    store.set_cluster(kept.id, "curnagl", state="quarantined")
    for cluster, reason in (("desi", ""), ("desi", "new disks"), ("curnagl", "")):
        store.drain(Drain(cluster, "bob", reason, 5.0))
    assert store.campaign(kept.id).obstacle == "desi is drained by bob: new disks; curnagl is quarantined"
    assert (store.undrain("desi"), store.undrain("desi"), store.campaign(kept.id).obstacle) == (True, False, "")


def test_a_deleted_campaign_is_gone_and_its_numbers_are_not_used_again(store, kept, pilot):
    bundle = store.lease(pilot, kept.id, 5, 0.0)
    store.record(pilot, kept.id, 1, [value(0, bundle.id)], [], 40, 0.0)
    store.add_event(kept.id, "desi", "error", "item_failed", "", "", 1, 0.0)
    store.delete_campaign(kept.id)
    store.delete_campaign(kept.id)
    assert (store.campaigns(), store.pilots(), store.live_bundles(), store.events()) == ([], [], [], [])
    store.add_campaign(kept)
    assert store.items(kept.id, 0, 1)[0].state == "waiting"
    again = store.add_pilot(kept.id, "desi", 1, 0.0)
    assert again > pilot
    assert store.lease(again, kept.id, 1, 0.0).id > bundle.id


def test_items_that_failed_wait_again_as_if_they_were_new(store, kept, pilot):
    bundle = store.lease(pilot, kept.id, 10, 0.0)
    ends = [value(number, bundle.id, 40 * number) for number in range(7)]
    bad = [
        ItemOutcome(number, bundle.id, state, 1.0, 280 + number, 9, "no", (1, 2, 3))
        for number, state in ((7, ItemState.FAILED), (8, ItemState.CRASHED), (9, ItemState.FAILED))
    ]
    store.record(pilot, kept.id, 1, [*ends, *bad], [], 400, 0.0)
    store.set_campaign_state(kept.id, CampaignState.FAILED, "3 failed", 9.0)
    assert store.items(kept.id, 8, 1)[0].log == (pilot, 1, 2, 3)
    assert store.failed_with_outcome(kept.id) == [7, 8, 9]
    assert store.failed_with_outcome(kept.id, [1, 8]) == [8]
    assert store.resubmit(kept.id, [1, 8], 441) == 1
    again = store.campaign(kept.id)
    assert (again.state, again.reason, again.ended_at) == (CampaignState.ACTIVE, "", None)
    assert (again.succeeded, again.failed, again.waiting, again.outcomes_size) == (7, 2, 1, 441)
    [row] = store.items(kept.id, 8, 1)
    assert (row.state, row.attempts, row.crashes, row.offset, row.error, row.log) == ("waiting", 0, 0, None, "", None)
    assert store.resubmit(kept.id, None, 523) == 2
    assert list(store.lease(pilot, kept.id, 10, 0.0)) == [7, 8, 9]
    assert store.resubmit(kept.id, None, 523) == 0
    with pytest.raises(GridError, match="items 0 to 9"):
        store.resubmit(kept.id, [10], 523)


def test_a_cancelled_campaign_goes_on_with_some_of_its_items(store, kept, pilot):
    bundle = store.lease(pilot, kept.id, 3, 0.0)
    store.cancel(kept.id, 0.0)
    with pytest.raises(GridError, match="being cancelled"):
        store.resubmit(kept.id, None, 0)
    store.give_back([bundle.id])
    assert store.resubmit(kept.id, [1, 8], 0) == 2
    assert [row.state for row in store.items(kept.id, 0, 10)] == [
        "waiting" if number in {1, 8} else "cancelled" for number in range(10)
    ]
    assert sorted(store.lease(pilot, kept.id, 10, 0.0)) == [1, 8]
    kept = store.campaign(kept.id)
    assert (kept.cancelled, kept.leased, kept.unleased) == (8, 2, 0)


def test_the_migrations_make_the_tables_that_the_store_uses(store):
    store.migrate()
    with store._database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_an_item_waits_no_longer_for_a_clock_that_was_set_back(store, kept, pilot):
    first = store.lease(pilot, kept.id, 10, 7200.0)
    retries = [ItemRetry(0, first.id, False, 7260.0), ItemRetry(1, first.id, False, 3700.0)]
    store.record(pilot, kept.id, 1, [], retries, 0, 7200.0)
    assert store.next_due(kept.id) == 3700.0
    assert list(store.lease(pilot, kept.id, 5, 3600.0)) == [0], "an hour is more than any pause"
    assert store.lease(pilot, kept.id, 5, 3600.0) is None


def test_items_that_a_time_limit_has_ended_wait_for_a_pilot_with_all_its_time(store, kept, pilot):
    first = store.lease(pilot, kept.id, 8, 20.0)
    ended = [ItemRetry(number, first.id, False, 0.0, 40.0, interrupted=True) for number in (1, 2, 3)]
    store.record(pilot, kept.id, 1, [], [*ended, ItemRetry(4, first.id, False, 0.0)], 0, 20.0)
    assert store.attempts(kept.id, [1, 4]) == {1: (0, 0), 4: (1, 0)}, "it is no attempt of the item's own"
    assert store.interruptions(kept.id, [1, 4]) == {1: 1, 4: 0}
    assert list(store.lease(pilot, kept.id, 100, 20.0)) == [4, 8, 9]
    assert store.lease(pilot, kept.id, 100, 20.0) is None and store.has_interrupted(kept.id)
    again = store.lease_interrupted(pilot, kept.id, 2)
    assert list(again) == [1, 2]
    assert store.give_back([again.id]) == 2
    again = store.lease_interrupted(pilot, kept.id, 9)
    assert list(again) == [1, 2, 3] and store.lease_interrupted(pilot, kept.id, 9) is None
    assert not store.has_interrupted(kept.id)
    gone = [ItemOutcome(number, again.id, ItemState.FAILED, 50.0, 0, 9, "too long") for number in again]
    assert store.record(pilot, kept.id, 2, gone, [], 30, 30.0).new == 3
    assert store.resubmit(kept.id, [1], 60) == 1
    assert list(store.lease(pilot, kept.id, 9, 40.0)) == [1], "as if it had never been tried"


def test_a_database_of_a_later_version_is_left_alone(url, opened, store):
    with store._database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9042'"))
    with pytest.raises(GridError, match="9042"):
        opened(url).migrate()


def test_many_begin_at_once(url, opened):
    stores, wrong = [opened(url) for _ in range(4)], []

    def migrate(one: Store) -> None:
        try:
            one.migrate()
            one.add_campaign(campaign())
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=migrate, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(stores[0].campaigns()) == 4


def test_a_database_without_tables_is_told(url, opened):
    with pytest.raises(GridError, match="no tables"):
        opened(url).campaigns()


@needs_postgres
def test_a_password_is_never_shown(postgresql, opened):
    password = postgresql.split(":")[2].split("@")[0]
    wrong = postgresql.replace(password, "wr0ng-secret")
    nowhere = postgresql.rpartition(":")[0] + ":1/postgres"
    for url, advice in ((wrong, "SRF_GRID_DATABASE_URL"), (nowhere, "reaches")):
        with pytest.raises(GridError) as caught:
            opened(url).campaigns()
        shown = f"{caught.value} {caught.value.__cause__!r}"
        assert password not in shown
        assert "wr0ng-secret" not in shown
        assert "127.0.0.1" in caught.value.where
        assert advice in caught.value.advice


@needs_postgres
def test_a_restart_of_postgresql_costs_no_error(postgresql, opened):
    with grid_lab.schema(postgresql) as url:
        store = opened(url)
        store.migrate()
        store.add_campaign(campaign(3))
        others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        with opened(postgresql)._database.writing() as connection:
            assert connection.execute(text(f"{others} AND backend_type = 'client backend'")).scalar()
        assert [one.total for one in store.campaigns()] == [3]


FILLED = """
import sys
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import Campaign, ItemOutcome, ItemState
from slurm_ray_flow.grid.store import Store
store = Store(f"sqlite:///{sys.argv[1]}/grid.db")
store.migrate()
store.add_campaign(Campaign("c" * 32, "n", "u", "f", total=1_000_000))
pilot, count = store.add_pilot("c" * 32, "desi", 1, 0.0), 0
try:
    while True:
        bundle = store.lease(pilot, "c" * 32, 1000, 0.0)
        ends = [ItemOutcome(n, bundle.id, ItemState.FAILED, 1.0, 0, 9, "x" * 400) for n in bundle]
        count += store.record(pilot, "c" * 32, count, ends, [], count, 0.0).new
except GridError as error:
    assert "full" in error.what, error
    assert error.advice
assert 0 < store.campaign("c" * 32).failed == count
assert store.pilots()[0].results_offset == count - 1000
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_told_and_loses_nothing_that_was_recorded(tmp_path):
    small = 'mount -t tmpfs -o size=8m none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", small, "sh", str(tmp_path), sys.executable, FILLED]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize("damage", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_told_and_left_as_it_is(tmp_path, opened, damage):
    (tmp_path / "grid.db").write_bytes(damage)
    with pytest.raises(GridError) as caught:
        opened(f"sqlite:///{tmp_path}/grid.db").migrate()
    assert str(tmp_path) in caught.value.where
    assert caught.value.advice
    assert (tmp_path / "grid.db").read_bytes() == damage


@pytest.mark.parametrize("url", ["", "nothing", "mysql://u:s3cret@h/d", "sqlite://", "postgresql://u:s3cret@h:port/d"])
def test_other_addresses_are_refused_without_their_passwords(url):
    with pytest.raises(GridError) as caught:
        Store(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_files_are_their_users_alone_and_survive_a_power_cut(tmp_path: Path, opened):
    store = opened(f"sqlite:///{tmp_path}/home/grid.db")
    store.migrate()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "home").iterdir()} == {0}
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    with store._database.reading() as connection:
        modes = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2], "each commit is on the disk before it is told"
    store.close()
    assert os.listdir(tmp_path / "home") == ["grid.db"]
