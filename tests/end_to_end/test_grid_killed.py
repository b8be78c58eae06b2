"""The grid's engine is killed at any moment: its tables and its outcome log agree, and each item has one outcome."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grid_lab import campaign
from slurm_ray_flow.core.grid.model import ItemState
from slurm_ray_flow.grid.outcome_log import frame_at, read_frames
from slurm_ray_flow.grid.store import Store
from support import wait_for

ITEMS, KILLS, BOUND = 20_000, 4, 300
ENGINE = """
import sys
from pathlib import Path
from slurm_ray_flow.core.grid.model import ItemOutcome, ItemRetry, ItemState
from slurm_ray_flow.grid.outcome_log import Frame, OutcomeLog
from slurm_ray_flow.grid.store import Store

store, folder, id, results = Store(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[2], "results.txt")
[pilot] = store.pilots(id)
log, offset = OutcomeLog(folder / "outcomes", store.campaign(id).outcomes_size), pilot.results_offset
print("begun", flush=True)

def lines():
    with results.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    return [tuple(map(int, line.split())) for line in data.splitlines()], offset + len(data)

unseen = {bundle.id for bundle in store.live_bundles()} - {bundle for bundle, _ in lines()[0]}
store.give_back(sorted(unseen))  # the pilot never got them
ended = False
while not ended:
    bundle = store.lease(pilot.id, id, 50, 0.0)
    if bundle:
        with results.open("a") as stream:  # what the pilot would write; every tenth item fails once
            stream.writelines(f"{bundle.id} {number}\\n" for number in bundle)
    found, behind = lines()
    tried = store.attempts(id, [number for _, number in found])
    fails = {number for _, number in found if number % 10 == 0 and number not in tried}
    ends = [(bundle_id, number) for bundle_id, number in found if number not in fails]
    places = log.append(Frame(number, 1, 0.5, b"value of %d" % number) for _, number in ends)
    log.sync()
    outcomes = [ItemOutcome(n, b, ItemState.SUCCEEDED, 0.5, *place) for (b, n), place in zip(ends, places)]
    retries = [ItemRetry(number, bundle_id, False, 0.0) for bundle_id, number in found if number in fails]
    ended = store.record(pilot.id, id, behind, outcomes, retries, log.size, 0.0).ended
    offset = behind
"""


FULL_DISK = """
import os, sys, threading, time
from pathlib import Path
from grid_lab import campaign
from slurm_ray_flow.grid.engine import Engine
from slurm_ray_flow.grid.store import Store

disk, launched = Path(sys.argv[1]), []
os.environ["SRF_HOME"] = str(disk / "home")
store = Store(f"sqlite:///{disk}/grid.db")
store.migrate()
made = campaign(10)
engine = Engine(store, lambda *_: launched.append(1), lambda *_: 2, send=lambda _: None)
engine.add(made)
(disk / "home" / "grid").mkdir(parents=True)
with open(disk / "filler", "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 4096) == 4096:
            pass
    except OSError as error:
        assert "space" in str(error), error

def wait_for(what):
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, (engine.troubles.text, launched, store.events(made.id))
        time.sleep(0.05)

threading.Thread(target=engine.run, daemon=True).start()
wait_for(lambda: "full" in engine.troubles.text)
time.sleep(2)
assert not launched and engine.troubles.text
assert store.campaign(made.id).total == 10 and not store.pilots()
(disk / "filler").unlink()
wait_for(lambda: launched and not engine.troubles.text)
[event] = [event for event in store.events(made.id) if event.code == "home"]
assert "full" in event.message
engine.stop()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_an_engine_whose_disk_is_full_waits_says_so_and_goes_on_by_itself(tmp_path):
    small = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", small, "sh", str(tmp_path), sys.executable, FULL_DISK]
    folders = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, timeout=BOUND, env={**os.environ, "PYTHONPATH": folders})


@pytest.fixture
def store(tmp_path):
    made = Store(f"sqlite:///{tmp_path}/grid.db")
    made.migrate()
    yield made
    made.close()


def test_what_is_committed_agrees_after_each_kill(store, tmp_path):
    made, chance = campaign(ITEMS), random.Random(7)
    store.add_campaign(made)
    store.add_pilot(made.id, "desi", 1, 0.0)
    (tmp_path / "results.txt").touch()
    command = [sys.executable, "-c", ENGINE, f"sqlite:///{tmp_path}/grid.db", str(tmp_path), made.id]
    for number in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as engine:
            assert engine.stdout.readline() == b"begun\n"
            if number == KILLS - 1:
                wait_for(lambda: store.campaign(made.id).succeeded)
            time.sleep(chance.uniform(0.03, 0.25))
            engine.kill()
        agrees(store, made.id, tmp_path / "outcomes")
        cut_short(tmp_path / "results.txt")
    assert 0 < store.campaign(made.id).succeeded < ITEMS, "the kills came while it was at work"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=BOUND)
    agrees(store, made.id, tmp_path / "outcomes")
    assert store.campaign(made.id).succeeded == ITEMS
    assert store.live_bundles() == []


def cut_short(results):
    """A line that the pilot had half written would be completed by it; here the pilot dies with the engine."""
    whole = results.read_bytes()
    results.write_bytes(whole[: whole.rfind(b"\n") + 1])


def agrees(store, campaign_id, log):
    kept = store.campaign(campaign_id)
    frames = list(read_frames(log, 0, kept.outcomes_size)) if kept.outcomes_size else []
    numbers = [frame.number for frame in frames]
    assert len(numbers) == len(set(numbers)) == kept.succeeded
    assert all(frame.data == b"value of %d" % frame.number for frame in frames)
    live = store.live_bundles()
    assert kept.total == ITEMS == kept.unleased + sum(one.size - one.ended for one in live) + kept.ended
    ended = [row for row in store.items(campaign_id, 0, ITEMS) if row.state == "succeeded"]
    assert sorted(numbers) == [row.number for row in ended]
    assert all(frame_at(log, row.offset, row.length).number == row.number for row in ended[::100])
    assert store.outcome_of(campaign_id, ended[0].number)[2] is ItemState.SUCCEEDED if ended else True
