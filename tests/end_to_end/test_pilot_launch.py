"""Pilots on this machine, as their engine launches them: from what another process has prepared."""

import os
import pickle
import sys
import threading
import time

import pytest
from prefect import Flow

from slurm_ray_flow import Cancelled, LocalMachine
from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.item_stream import ItemStream
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.errors import EnvironmentFailed
from slurm_ray_flow.core.items import outcome_of_item
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.scan import target_of
from slurm_ray_flow.flows.pilot import Prepared, call_of_pilot, prepare, run_pilot
from slurm_ray_flow.tasks.run import Call
from support import wait_for

pytestmark = pytest.mark.server
OPTIONS = Options(cpus_per_node=1)
SETTINGS = {"workers": 1, "idle_seconds": 60.0, "threads": 1}
PROCESS = f"""
import os, sys, threading
from slurm_ray_flow import LocalMachine
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.flows.pilot import Prepared, call_of_pilot, run_pilot

text, root, function, arguments = sys.argv[1:]
prepared, cluster, found = Prepared.from_json(open(text).read()), LocalMachine(root=root), []

def launch():
    call = call_of_pilot(function, arguments, "served", {SETTINGS})
    found.append(run_pilot(call, cluster, Options(cpus_per_node=1), prepared, lambda run: print(run, flush=True)))

with connected(ensure_server(print)):
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
print(found[0].unwrap())
"""


@pytest.fixture
def cluster(tmp_path):
    return LocalMachine(root=tmp_path / "root")


@pytest.fixture
def stored(work, server, cluster, monkeypatch):
    """A function of the user's project, prepared on the cluster; gives its digests, and what was prepared."""
    function = store.put(["reference", "parallel_items", "described"], "the function")
    arguments = store.put({"args": [], "kwargs": {"more": 1000}}, "the arguments")
    import parallel_items

    call = Call(function.digest, arguments.digest, target_of(parallel_items.described), "described")
    monkeypatch.setattr(sys, "argv", ["program.py", "--fast"])
    preparation = Flow(fn=lambda: prepare(call, cluster, OPTIONS), name="preparation", persist_result=False)
    with connected(server):
        return function.digest, arguments.digest, preparation()


def in_thread(server, *args, **named):
    """Run a pilot in a thread; gives the thread, its outcome or error, and the ids of the run."""
    found, ids = [], []

    def launch():
        try:
            with connected(server):
                found.append(run_pilot(*args, ids.append, **named))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=launch)
    thread.start()
    return thread, found, ids


def items(numbers):
    return [(number, pickle.dumps(((number,), {}))) for number in numbers]


def read_all(stream, count):
    found, offset = {}, 0
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        results, offset = stream.results(offset, 1)
        for result, data in zip(results, stream.values(results), strict=True):
            found[result.item] = outcome_of_item(result.kind, data, "here").unwrap()
    return found


def test_another_process_elsewhere_launches_what_was_prepared(stored, cluster, script, tmp_path, api):
    function, arguments, prepared = stored
    assert Prepared.from_json(prepared.to_json()) == prepared
    (tmp_path / "prepared.json").write_text(prepared.to_json())
    process = script(PROCESS, tmp_path / "prepared.json", cluster.root, function, arguments, wait=False)
    run_id = process.stdout.readline().strip()
    stream = ItemStream(cluster, store.find_record(run_id).paths)
    stream.place({1: items(range(50)), 2: items(range(50, 100))})
    values = read_all(stream, 100)
    stream.close()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "'done': 100" in out
    assert {number: value[0] for number, value in values.items()} == {number: 1000 + number for number in range(100)}
    assert {tuple(value[1:]) for value in values.values()} == {(("program.py", "--fast"), "project")}
    flow_run = api.get(f"/flow_runs/{run_id}")
    assert flow_run["state_type"] == "COMPLETED"
    assert {"slurm-ray-flow", "served"} <= set(flow_run["tags"])
    assert api.get(f"/flows/{flow_run['flow_id']}")["name"] == "pilot"
    assert store.find_record(run_id).ended == "succeeded"


def test_what_is_gone_from_the_cluster_is_named(stored, server, cluster):
    function, arguments, prepared = stored
    os.unlink(os.path.join(cluster.root_folder, prepared.snapshot.listing))
    call = call_of_pilot(function, arguments, "described", SETTINGS)
    thread, found, ids = in_thread(server, call, cluster, OPTIONS, prepared)
    thread.join(120)
    [error] = found
    assert isinstance(error, EnvironmentFailed)
    assert "snapshot" in error.what
    assert prepared.snapshot.listing in error.where
    assert store.find_record(ids[0]).ended == "failed"


def test_a_pilot_is_cancelled_by_its_process(stored, server, cluster, api):
    function, arguments, prepared = stored
    call = call_of_pilot(function, arguments, "described", SETTINGS)
    cancelled = threading.Event()
    thread, found, ids = in_thread(server, call, cluster, OPTIONS, prepared, cancelled=cancelled)
    wait_for(lambda: ids)
    stream = ItemStream(cluster, store.find_record(ids[0]).paths)
    stream.place({1: items([7])})
    assert set(read_all(stream, 1)) == {7}
    cancelled.set()
    thread.join(120)
    assert isinstance(found[0], Cancelled)
    assert api.get(f"/flow_runs/{ids[0]}")["state_type"] == "CANCELLED"


def test_a_refused_run_id_submits_nothing(stored, server, cluster):
    function, arguments, prepared = stored
    call = call_of_pilot(function, arguments, "described", SETTINGS)
    ids = []

    def refuse(run_id):
        ids.append(run_id)
        raise LookupError("no more pilots")

    with connected(server), pytest.raises(LookupError):
        run_pilot(call, cluster, OPTIONS, prepared, refuse)
    assert not os.path.exists(store.find_record(ids[0]).paths.folder)
