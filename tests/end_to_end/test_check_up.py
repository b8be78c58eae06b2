"""The check-up of a shared server, with a real lock, a real limit and a real artifact."""

import subprocess
import sys
import uuid

import pytest

from slurm_ray_flow import LocalMachine
from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.lock_mirror import mirror
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.lock import Lock, limit_name
from slurm_ray_flow.core.prefect_events import WARM_IDLE
from slurm_ray_flow.flows.checkup import checkup
from slurm_ray_flow.tasks.cluster_report import report
from support import wait_for

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the lock is Linux's"),
]
STRANGER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


class Shared(LocalMachine):
    """This machine under a lock."""

    _block_type_slug = "shared-check-up-machine"
    name: str = ""
    path: str = ""
    slots: int = 1

    @property
    def label(self):
        return self.name

    @property
    def lock(self):
        return Lock(self.path, self.slots)


@pytest.fixture
def stranger(tmp_path):
    started = []

    def start():
        command = [sys.executable, "-c", STRANGER, str(tmp_path / "the.lock")]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def machine(tmp_path):
    def make(slots=1):
        return Shared(name=f"desi-{uuid.uuid4().hex[:8]}", path=str(tmp_path / "the.lock"), slots=slots)

    (tmp_path / "the.lock").touch()
    return make


def mirrored(cluster, api):
    return mirror(api, cluster.label, cluster.lock.slots, report(cluster, "lock").lock)


@pytest.mark.parametrize("slots", [1, 3])
def test_the_limit_is_taken_as_long_as_a_stranger_has_the_lock(machine, stranger, api, slots):
    cluster = machine(slots)

    def active():
        mirrored(cluster, api)
        return concurrency_limit.read(api, limit_name(cluster.label)).active

    assert active() == 0
    process = stranger()
    assert active() == slots
    assert active() == slots, "the same again changes nothing"
    process.communicate()
    assert active() == 0
    assert concurrency_limit.take(api, limit_name(cluster.label))


def test_a_launch_s_slot_is_not_freed_by_a_stranger_who_comes_and_goes(machine, stranger, api):
    cluster = machine()
    mirrored(cluster, api)
    ours = concurrency_limit.take(api, limit_name(cluster.label), str(uuid.uuid4()))
    process = stranger()
    mirrored(cluster, api)
    process.communicate()
    limit = mirrored(cluster, api)
    assert concurrency_limit.read(api, limit.name).active == 1
    assert concurrency_limit.renew(api, ours)
    concurrency_limit.give_back(api, ours)
    assert concurrency_limit.read(api, limit.name).active == 0


def test_slots_that_the_block_changes_are_changed_in_prefect(machine, api):
    cluster = machine(1)
    mirrored(cluster, api)
    wider = cluster.model_copy(update={"slots": 4})
    limit = mirrored(wider, api)
    assert (limit.slots, concurrency_limit.read(api, limit.name).slots) == (4, 4)


def test_what_idles_for_long_is_told_once(server, api, tmp_path, monkeypatch):
    from slurm_ray_flow import slurm_ray_flow

    name = f"warm-{uuid.uuid4().hex[:8]}"

    @slurm_ray_flow(keep_warm="5m", cluster=LocalMachine(root=tmp_path / "root"), cpus_per_node=1)
    def quick():
        return 42

    run_id = quick.submit().run_id
    folder = tmp_path / "root" / "runs" / run_id
    try:
        wait_for(lambda: '"idle"' in (folder / "events.jsonl").read_text())
        with connected(server):
            LocalMachine(root=tmp_path / "root").save(name)
            [early] = checkup(name, idle_minutes=60)
            [seen], [again] = checkup(name, idle_minutes=0), checkup(name, idle_minutes=0)
    finally:
        (folder / "cancel").touch()
    assert {one.run_id for found in (early, seen, again) for one in found.idle} == {run_id}
    wanted = {"filter": {"event": {"name": [WARM_IDLE]}, "resource": {"id": [f"slurm-ray-flow.warm.{run_id}"]}}}
    wait_for(lambda: api.post("/events/filter", wanted)["events"])
    [event] = api.post("/events/filter", wanted)["events"]
    assert event["payload"]["release"] == f"srf release {run_id[:8]}"
    assert event["payload"]["core_hours_an_hour"] == 1
