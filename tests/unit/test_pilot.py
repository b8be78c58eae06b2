"""The parts of a pilot that need no process: chunks, what is said of a failure, what a worker notes."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from slurm_ray_flow.core.errors import OutOfMemory, ResultError
from slurm_ray_flow.core.items import outcome_of_item
from slurm_ray_flow.remote.driver import item_outcomes
from slurm_ray_flow.remote.driver.item_queue import ItemQueue, chunk_size
from slurm_ray_flow.remote.driver.items import ItemSink, ItemSource
from slurm_ray_flow.remote.driver.memory_guard import MemoryGuard
from slurm_ray_flow.remote.driver.pilot import SYNC_SECONDS, _Sync, _sync_until
from slurm_ray_flow.remote.driver.pilot_worker import Memory
from slurm_ray_flow.remote.driver.worker_processes import end_name, worker_variables
from slurm_ray_flow.remote.shared import limits
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.items import bundle_name, pack_bundle

# ---- chunks


@pytest.mark.parametrize(
    ("mean", "size"), [(0, 1), (1e-6, 10_000), (1e-3, 500), (0.1, 5), (0.4, 1), (0.6, 1), (3600, 1)]
)
def test_a_chunk_takes_half_a_second(mean, size):
    assert chunk_size(mean) == size


@pytest.fixture
def run(tmp_path):
    files = RunFiles(str(tmp_path), "run")
    (tmp_path / "runs" / "run" / "items").mkdir(parents=True)
    return files


def place(run, number, count):
    with open(f"{run.items}/{bundle_name(number)}", "wb") as file:
        file.write(pack_bundle([(1000 * number + one, b"x") for one in range(count)]))


def test_bundles_are_taken_only_while_workers_need_them(run):
    queue = ItemQueue(run, workers=2)
    queue.fill(0)
    assert not queue
    for number in range(4):
        place(run, number, 10)
    queue.fill(0)
    assert len(queue) == 10, "a chunk is one item before the first has ended"
    queue.fill(0.1)
    assert len(queue) == 20, "two chunks of five for each worker"
    assert ItemSource(run.items).take().number == 2, "the others can still be withdrawn"


def test_a_queue_is_over_when_the_stream_is_closed_and_no_item_waits(run):
    queue = ItemQueue(run, workers=1)
    place(run, 1, 3)
    open(f"{run.items}/closed", "w").close()
    queue.fill(0.1)
    assert not queue.is_over
    while items := queue.next_chunk(0.1):
        last = items
    queue.fill(0.1)
    assert queue.is_over
    queue.give_back(last)
    assert not queue.is_over
    assert queue.next_chunk(0.1) == last


def test_the_last_items_are_shared_among_the_workers(run):
    queue = ItemQueue(run, workers=4)
    place(run, 1, 10)
    queue.fill(0.001)
    assert [len(queue.next_chunk(0.001)) for _ in range(7)] == [3, 2, 2, 1, 1, 1, 0]


def test_a_damaged_bundle_is_passed_over_and_said(run):
    with open(f"{run.items}/{bundle_name(1)}", "wb") as file:
        file.write(pack_bundle([(1, b"xxx")])[:-1])
    place(run, 2, 1)
    queue = ItemQueue(run, workers=1)
    queue.fill(0)
    assert queue.next_chunk(0) == [(2, 2000, b"x")]
    with open(run.log) as log:
        assert "can't be read" in log.read()


# ---- what a worker notes


def test_the_position_says_which_item_a_dead_worker_was_at():
    memory = Memory(3)
    slot = memory.slots[2]
    assert slot.position == (0, 0, False)
    slot.begin(7, 9_999, 1 << 40)
    assert (slot.position, slot.log, slot.writing) == ((7, 9_999, True), 1 << 40, None)
    slot.write(0)
    assert slot.writing == 0
    assert slot.end(7, 9_999, True) >= 0
    assert (slot.position, slot.counts) == ((7, 10_000, False), (1, 0))
    slot.begin(8, 0, 0)
    slot.end(8, 0, False)
    assert (slot.counts, slot.writing) == ((1, 1), None)
    assert memory.slots[0].counts == memory.slots[1].counts == (0, 0)
    assert not memory.stopping
    memory.stop()
    assert memory.stopping


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")
def test_results_are_on_the_disk_twice_a_second_and_values_before_their_lines(run, monkeypatch):
    synced, names = [], {}

    def fsync(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((time.monotonic(), name, os.fstat(descriptor).st_size))
        names.setdefault(name, len(synced))

    monkeypatch.setattr(os, "fsync", fsync)
    sink, ended, written = ItemSink(run.items), threading.Event(), []
    syncing = threading.Thread(target=_sync_until, args=(_Sync(run, sink), ended))
    syncing.start()
    for number in range(200):
        sink.add(1, number, "value", 0.01, b"%d" % number)
        written.append((time.monotonic(), sink.results_size))
        time.sleep(0.01)
    ended.set()
    syncing.join()
    assert list(names) == ["values", "results.jsonl"], "no line on the disk names bytes that may be lost"
    lines = [(at, size) for at, name, size in synced if name == "results.jsonl"]
    for at, size in written[:-1]:
        on_disk = min((later for later, covered in lines if covered >= size), default=written[-1][0] + SYNC_SECONDS)
        assert on_disk - at < SYNC_SECONDS + 2.0, "of a machine that is busy"


# ---- outcomes


@pytest.mark.parametrize(
    "value",
    [None, 5, "é\udcff", b"x" * 200_000, [1, {"a": (2.5, {3})}], bytearray(b"x"), frozenset({1}), True, Counter("aab")],
)
def test_a_value_comes_back(value):
    outcome = item_outcomes.of_value(value)
    assert outcome.kind == "value"
    back = outcome_of_item("value", outcome.data, "here").unwrap()
    assert (type(back), back) == (type(value), value)


def test_values_of_builtin_types_have_the_pickle_of_any_other_way():
    shared = ["x"]
    for value in (shared, [shared, shared], {"a": 1.5}):
        assert pickle.loads(item_outcomes.dumped(value)) == value
    twice = pickle.loads(item_outcomes.dumped([shared, shared]))
    assert twice[0] is twice[1]


def test_a_value_that_can_not_be_pickled_is_an_error_that_names_the_part():
    outcome = item_outcomes.of_value({"model": [threading.Lock()]})
    assert (outcome.kind, outcome.group) == ("error", "a dict that can't be pickled")
    error = outcome_of_item("error", outcome.data, "there").exception
    assert isinstance(error, ResultError)
    assert "model" in error.what
    assert "there" in str(error)


def raised(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error


def fails(number):
    raise KeyError(number)


def in_a_library(_):
    json.loads("{")


class Odd(Exception):
    def __str__(self):
        raise RuntimeError


def raises_odd(_):
    raise Odd


def test_failures_of_one_kind_have_one_group():
    groups = {item_outcomes.of_error(raised(fails, number)).group for number in range(3)}
    [group] = groups
    assert group.startswith("KeyError at ")
    assert group.endswith("in fails")
    assert "test_pilot.py:" in group
    library = item_outcomes.of_error(raised(in_a_library, 1))
    assert library.group.startswith("json.decoder.JSONDecodeError at ")
    assert library.group.endswith("in in_a_library"), "the user's frame, not the library's"
    assert item_outcomes.of_error(raised(raises_odd, 1)).message.endswith("Odd")
    assert item_outcomes.group_of(ValueError("x")) == "ValueError"


def test_a_message_is_one_line_that_each_encoder_takes():
    message = item_outcomes.message_of(ValueError("a\n  b\t\udcff" + "x" * 1000))
    assert message.startswith("ValueError: a b \\udcff")
    assert len(message) == 300
    message.encode()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError("no")])
def test_an_item_may_raise_anything(error):
    def function():
        raise error

    outcome = item_outcomes.of_error(raised(function))
    back = outcome_of_item(outcome.kind, outcome.data, "here")
    assert (type(back.exception), back.exception.args) == (type(error), error.args)
    assert "in function" in back.traceback


def test_a_crash_has_the_error_of_its_cause():
    outcome = item_outcomes.of_crash("out_of_memory", "The kernel ended it.\nTry: more", "out of memory")
    error = outcome_of_item("crashed", outcome.data, "there").exception
    assert isinstance(error, OutOfMemory)
    assert (error.what, error.advice) == ("The kernel ended it.", "more")


def test_ends_have_names():
    assert [end_name(code) for code in (3, -11, -9, -60)] == ["exit code 3", "SIGSEGV", "SIGKILL", "signal 60"]


# ---- what a worker gets


def test_workers_share_the_gpus_and_keep_what_the_user_has_set():
    environment = {"CUDA_VISIBLE_DEVICES": "1,GPU-5,7", "MKL_NUM_THREADS": "9"}
    got = [worker_variables(number, {"threads": 4, "gpus_per_item": 1}, environment) for number in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in got] == ["1", "GPU-5", "7", "1"]
    assert got[0]["OMP_NUM_THREADS"] == "4"
    assert "MKL_NUM_THREADS" not in got[0]
    two = worker_variables(1, {"threads": 0, "gpus_per_item": 2}, environment)
    assert (two["CUDA_VISIBLE_DEVICES"], two["OMP_NUM_THREADS"]) == ("7,1", "1")
    assert "CUDA_VISIBLE_DEVICES" not in worker_variables(0, {"threads": 1, "gpus_per_item": 0}, environment)
    assert "CUDA_VISIBLE_DEVICES" not in worker_variables(0, {"threads": 1, "gpus_per_item": 1}, {})


def test_the_memory_that_was_too_much_is_told_also_when_it_is_free_again():
    hold = "held = bytearray(b'x') * (200 << 20); print('held', flush=True); input()"
    worker = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout.readline() == b"held\n"
    guard = MemoryGuard(sum(limits.bounds([os.getpid(), worker.pid]).values()) - (100 << 20))
    assert guard.too_much({worker.pid: 7}) == 7
    told = guard.text
    worker.communicate(b"\n")
    time.sleep(guard.due)
    assert guard.too_much({}) is None
    assert guard.text == told
