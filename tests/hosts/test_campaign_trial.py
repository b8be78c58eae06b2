"""The trial: six campaigns of three users on three clusters, while something is killed or cut all the time.

The moderate size is for the suite: each trouble once. `SRF_TRIAL_ITEMS=100000 SRF_TRIAL_PAUSE=20 SRF_TRIAL_ROUNDS=99`
is the great one, with trouble until the end; `-s` shows what happens, and the figures.
"""

import contextlib
import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter

import pytest

import postgres
from hosts import faults
from hosts.slurm_launch_lab import temporary
from hosts.test_campaign import processes_of, running
from slurm_ray_flow import SlurmRayFlowError
from slurm_ray_flow.blocks.grid_engine import EngineFiles, end_engine, ensure_engine, read_engine_state
from slurm_ray_flow.blocks.processes import alive
from slurm_ray_flow.core.grid.model import ItemState
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.grid.database import URL_VARIABLE
from slurm_ray_flow.grid.outcome_log import read_frames
from slurm_ray_flow.grid.store import Store
from slurm_ray_flow.interface.campaign_outcomes import value_of
from support import wait_for

LIMIT = float(os.environ.get("SRF_TRIAL_LIMIT", "900"))
"""Seconds for all items."""
pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(int(LIMIT) + 600),
    pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed"),
]
ITEMS = int(os.environ.get("SRF_TRIAL_ITEMS", "20000"))
PAUSE = float(os.environ.get("SRF_TRIAL_PAUSE", "2"))
ROUNDS = int(os.environ.get("SRF_TRIAL_ROUNDS", "1"))
SEED = int(os.environ.get("SRF_TRIAL_SEED", "15"))
USERS = ("ann", "ben", "cleo")
AWAY = 4.0
"""Seconds for which something that is cut or ended stays away."""
WINDOW = 45.0 + 2 * PAUSE
"""Within so many seconds each user has outcomes while all of them wait for some."""
ASKED = {"REQUEST_JOB_INFO", "REQUEST_JOB_USER_INFO"}
"""What a squeue asks the controller."""
BAD = {0: ItemState.CRASHED, 1: ItemState.CRASHED, 2: ItemState.FAILED, 4: ItemState.FAILED}
"""The ends of the items of `items.bad` that fail, by their kinds; the kind 3 prints, the first one a million lines."""
LAST = ITEMS // 6 - 1
"""The item of `items.bad` that hangs; a person cancels the campaign when all others have ended."""


def kind_of(number):
    """What is bad about an item of `items.bad`; None for nothing."""
    return number // 100 % 6 if number % 100 == 50 else None


@pytest.fixture
def database(server, monkeypatch):
    """The engine keeps its tables in a PostgreSQL, whose address the Prefect server's supervisor was never told."""
    with postgres.server() as made:
        monkeypatch.setenv(URL_VARIABLE, made.url)
        end_engine()
        ensure_engine()
        monkeypatch.delenv(URL_VARIABLE)
        yield made
        end_engine()
        (EngineFiles().folder / "database").unlink(missing_ok=True)


class Trial:
    """What is tried: the clusters, the database and the campaigns, and what is seen of them each second."""

    def __init__(self, jobs, launches, database, campaigns):
        self.jobs, self.launches, self.database, self.campaigns = jobs, launches, database, campaigns
        self.began, self.samples, self.ended = time.monotonic(), [], threading.Event()
        self.watching = self._watched()
        self.store = Store(database.url)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def say(self, text):
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def statuses(self):
        """The campaigns as the tables have them, whether the engine runs or not."""
        return {one.id: one for one in self.store.campaigns() if one.id in self.campaigns}

    def over(self):
        """Whether all campaigns have ended; what hangs is cancelled when nothing else is left."""
        found = self.statuses()
        for made, is_bad in self.campaigns.values():
            one = found[made.id]
            if is_bad and not one.state.final and one.ended == one.total - 1:
                [row] = self.store.items(made.id, LAST, 1)
                if row.state in {"waiting", "leased"}:
                    made.cancel()
        return all(one.state.final and one.ended == one.total for one in found.values())

    def _watched(self):
        """A client that follows one of the campaigns."""
        return self.launches.srf("grid", "watch", next(iter(self.campaigns)))

    def restart_client(self):
        self.watching.kill()
        self.watching = self._watched()
        return True

    def _look(self):
        while not self.ended.wait(1):
            with contextlib.suppress(SlurmRayFlowError):  # the database is away
                found = self.statuses().values()
                counts = {user: sum(one.ended for one in found if one.user == user) for user in USERS}
                waiting = {user for user in USERS if any(one.user == user and one.unleased for one in found)}
                self.samples.append((time.monotonic() - self.began, counts, len(waiting) == len(USERS)))

    def end(self):
        self.ended.set()
        self._thread.join()
        self.store.close()


def test_whatever_is_killed_or_cut_each_item_has_one_outcome(jobs, launches, database, monkeypatch):
    import items

    before, began = len(jobs.slurm.queries("alice")), time.time()
    clusters, campaigns = [jobs.name, launches.name, "local"], {}
    for user in USERS:
        monkeypatch.setenv("LOGNAME", user)
        for function in (items.quick, items.bad if user == USERS[-1] else items.quick):
            same = {"last": LAST} if function is items.bad else {}
            made = function.campaign(range(LAST + 1), clusters=clusters, max_pilots=1, same=same)
            campaigns[made.id] = (made, function is items.bad)
    trial = Trial(jobs, launches, database, campaigns)
    try:
        troubles = make_trouble(trial)
        wait_for(trial.over, LIMIT)
    finally:
        trial.end()
    took = time.monotonic() - trial.began
    assert trial.watching.wait(120) == 0, trial.watching.communicate()[1]
    for made, is_bad in campaigns.values():
        each_item_has_its_outcome(trial, made, is_bad)
    nobody_starved(trial)
    asked = [query.time for query in jobs.slurm.queries("alice")[before:] if query.what in ASKED]
    soon = [later - earlier for earlier, later in itertools.pairwise(asked) if later - earlier < 1.9]
    print(f"{len(asked)} squeues in {time.time() - began:.0f} s, {len(soon)} of them too soon: {soon[:5]}")
    assert len(soon) <= troubles // 4, "(whoever asked may have been killed or cut off before the answer was kept)"
    nothing_is_left(trial)
    print(f"{ITEMS} items in {took:.0f} s")


def make_trouble(trial):
    """Have each trouble in turn, in rounds of a random order; gives how many there were."""
    wait_for(lambda: sum(one.ended for one in trial.statuses().values()) > ITEMS // 100)
    chance, happened, deadline = random.Random(SEED), Counter(), time.monotonic() + LIMIT
    for _ in range(ROUNDS):
        for trouble in chance.sample(TROUBLES, len(TROUBLES)):
            if trial.over() or time.monotonic() > deadline:
                break
            happened[trouble.__name__] += bool(done := trouble(trial))
            ended = sum(one.ended for one in trial.statuses().values())
            trial.say(f"{trouble.__name__}{'' if done else ' (not now)'}: {ended} of {ITEMS} ended")
            trial.ended.wait(PAUSE)
    print(dict(happened))
    assert all(happened[trouble.__name__] for trouble in TROUBLES), "each happened, or there was too little to do"
    return sum(happened.values())


def engine_is_killed(trial):
    state = read_engine_state()
    assert state, "the supervisor starts it again and again"
    with contextlib.suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGKILL)
    return True


def engine_stands_still(trial):
    """Meanwhile nobody writes: what is leased, waits and has ended adds up."""
    wait_for(lambda: (state := read_engine_state()) and alive(state.process))
    os.kill(pid := read_engine_state().pid, signal.SIGSTOP)
    try:
        time.sleep(1)
        bundles = trial.store.live_bundles()
        for one in trial.statuses().values():
            live = sum(bundle.size - bundle.ended for bundle in bundles if bundle.campaign == one.id)
            assert one.total == one.unleased + live + one.ended
        time.sleep(AWAY)
    finally:
        os.kill(pid, signal.SIGCONT)
    return True


def client_is_killed(trial):
    return trial.restart_client()


def pilot_is_killed(trial):
    """That with the most outcomes; one that has none might be the third of its cluster in a row, which closes it."""
    pilots = [pilot for made, _ in trial.campaigns.values() for pilot in running(made)]
    pilot = max(pilots, key=lambda pilot: pilot["succeeded"], default=None)
    if pilot is None or not pilot["succeeded"]:
        return False
    for pid in (found := processes_of(pilot["run_id"])):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def node_loses_power(trial):
    with trial.jobs.without(trial.jobs.lab["c2"]):
        time.sleep(AWAY)
    return True


def server_loses_power(trial):
    with trial.launches.lab.off("desi"):
        time.sleep(AWAY)
    for path in temporary(trial.launches.host):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return True


def link_is_cut(trial):
    with faults.cut(trial.jobs.host), faults.cut(trial.launches.host):
        time.sleep(AWAY)
    return True


def sshd_is_away(trial):
    with faults.no_sshd(trial.jobs.host), faults.no_sshd(trial.launches.host):
        connections = [faults.kill_sessions(host, "alice") for host in (trial.jobs.host, trial.launches.host)]
        time.sleep(AWAY)
    return any(connections)


def slurmctld_is_killed(trial):
    trial.jobs.slurm.kill_controller()
    time.sleep(AWAY)
    trial.jobs.slurm.start_controller()
    return True


def database_crashes(trial):
    trial.database.end(signal.SIGQUIT)
    time.sleep(AWAY)
    trial.database.start()
    return True


def engine_is_killed_while_the_database_is_away(trial):
    trial.database.end(signal.SIGQUIT)
    engine_is_killed(trial)
    time.sleep(2 * AWAY)
    trial.database.start()
    return True


TROUBLES = [
    engine_is_killed,
    engine_stands_still,
    client_is_killed,
    pilot_is_killed,
    node_loses_power,
    server_loses_power,
    link_is_cut,
    sshd_is_away,
    slurmctld_is_killed,
    database_crashes,
    engine_is_killed_while_the_database_is_away,
]


def each_item_has_its_outcome(trial, made, is_bad):
    """One frame an item, with the right value or the right end; and the tables have the same counts."""
    status = made.wait(60)
    frames = list(read_frames(CampaignFolder(made.id).outcomes, 0, status.outcomes_size))
    ends = {frame.number: ItemState(frame.kind) for frame in frames}
    expected = {
        number: BAD.get(kind_of(number) if is_bad else None, ItemState.SUCCEEDED) for number in range(status.total)
    }
    if is_bad:
        expected[LAST] = ends.get(LAST, ItemState.CANCELLED)
        assert expected[LAST] is not ItemState.SUCCEEDED
    assert len(frames) == len(ends)
    assert status.total == len(expected) == LAST + 1
    assert {number: end for number, end in expected.items() if ends.get(number, ItemState.CANCELLED) is not end} == {}
    values = {frame.number: value_of(frame) for frame in frames if frame.kind == ItemState.SUCCEEDED}
    assert values == {number: number for number, end in expected.items() if end is ItemState.SUCCEEDED}
    counts = Counter(expected.values())
    failed = counts[ItemState.FAILED] + counts[ItemState.CRASHED]
    assert (status.succeeded, status.failed, status.cancelled) == (len(values), failed, counts[ItemState.CANCELLED])
    assert (status.unleased, status.leased) == (0, 0)
    with contextlib.closing(Store(trial.database.url)) as store:
        rows = [row for first in range(0, status.total, 5000) for row in store.items(made.id, first, 5000)]
        assert [row.state for row in rows] == [expected[row.number].name.lower() for row in rows]
        assert len(rows) == status.total
        assert not [bundle for bundle in store.live_bundles() if bundle.campaign == made.id]


def nobody_starved(trial):
    """Within each window in which all users waited for outcomes, each of them had some."""
    full = [(at, counts) for at, counts, all_wait in trial.samples if all_wait]
    if full:
        first, last = full[0][1], full[-1][1]
        shares = {user: last[user] - first[user] for user in USERS}
        print("at full load:", shares, f"in {full[-1][0] - full[0][0]:.0f} s")
    for at, counts in full:
        later = next((one for then, one in full if then >= at + WINDOW), None)
        assert later is None or all(later[user] > counts[user] for user in USERS), (at, counts, later)


def nothing_is_left(trial):
    """No pilot, no process, no job, no lock and no temporary file; and the engine goes on, and ends at once."""
    client = GridClient()
    pilots = [pilot for made, _ in trial.campaigns.values() for pilot in client.pilots(made.id)]
    print(len(pilots), "pilots:", dict(Counter((pilot["cluster"], pilot["cause"]) for pilot in pilots)))
    for made, _ in trial.campaigns.values():
        wait_for(lambda: not running(made))  # noqa: B023 - it is asked at once
    trial.jobs.over()
    for pilot in pilots:
        if pilot["run_id"]:
            wait_for(lambda: not processes_of(pilot["run_id"]))  # noqa: B023 - it is asked at once
            trial.launches.over(pilot["run_id"])
    began = time.monotonic()
    end_engine()
    assert time.monotonic() - began < 60
