"""Bundles of items go to a running call, results come back: both sides on this machine, without a run."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from slurm_ray_flow import LocalMachine
from slurm_ray_flow.blocks.item_stream import ItemStream
from slurm_ray_flow.core.items import parse_results
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.remote.driver.items import ItemSink, ItemSource
from slurm_ray_flow.remote.shared.items import ERROR, VALUE, bundle_name, pack_bundle, unpack_bundle
from support import wait_for


@pytest.fixture
def stream(tmp_path):
    cluster = LocalMachine(root=tmp_path)
    return ItemStream(cluster, RunPaths(cluster.root_folder, "run"))


@pytest.fixture
def folder(tmp_path):
    return os.fspath(tmp_path / "runs" / "run" / "items")


def read_on(stream, offset=0):
    """The results behind an offset, each with its bytes, and the next offset."""
    found = []
    while True:
        results, offset = stream.results(offset, 0)
        if not results:
            return found, offset
        found += zip(results, stream.values(results), strict=True)


# ---- bundles


@pytest.mark.parametrize("items", [[], [(3, b"")], [(7, b"\n\0"), (1 << 40, b"x" * 100_000), (0, b"{}")]])
def test_a_bundle_has_its_items_again(items):
    assert unpack_bundle(pack_bundle(items)) == items


@pytest.mark.parametrize(
    "damage", [b"", b"\n", b"[]\n", b'{"format": 2, "items": []}\n', b'{"format": 1, "items": 3}\n']
)
def test_what_is_no_bundle_is_refused(damage):
    for content in (damage, pack_bundle([(1, b"some bytes")])[:-1], pack_bundle([(1, b"some bytes")]) + b"x"):
        with pytest.raises(ValueError, match=r"bundle|line"):
            unpack_bundle(content)


def test_bundles_are_taken_in_order_until_the_stream_is_closed(stream, folder):
    stream.place({10: [(4, b"d")], 9: [(2, b"b"), (3, b"c")]})
    source = iter(ItemSource(folder, idle_seconds=1e6))
    assert next(source) == (9, [(2, b"b"), (3, b"c")])
    stream.close()
    assert list(source) == [(10, [(4, b"d")])]


def test_a_stream_ends_when_nothing_comes_for_long(stream, folder):
    began = time.monotonic()
    assert list(ItemSource(folder, idle_seconds=0.2)) == []
    assert time.monotonic() - began >= 0.2
    stream.place({1: []})
    assert stream.withdraw([1]) == [1]


def test_a_bundle_that_comes_while_the_call_waits_is_taken(stream, folder):
    placing = threading.Timer(0.2, stream.place, [{1: [(1, b"")]}])
    placing.start()
    assert next(iter(ItemSource(folder, idle_seconds=30))).number == 1
    placing.join()


# ---- who has a bundle


def test_exactly_one_side_wins_each_bundle(stream, folder):
    tries, source, withdrawn, taken = 300, ItemSource(folder), [], []
    content = pack_bundle([(1, b"x")])
    os.makedirs(folder)
    barrier = threading.Barrier(2)

    def take():
        for _ in range(tries):
            barrier.wait(30)
            if bundle := source.take():
                taken.append(bundle.number)
            barrier.wait(30)

    other = threading.Thread(target=take)
    other.start()
    for number in range(tries):
        with open(os.path.join(folder, bundle_name(number)), "wb") as file:
            file.write(content)
        barrier.wait(30)
        withdrawn += stream.withdraw([number])
        barrier.wait(30)
    other.join()
    assert sorted(taken + withdrawn) == list(range(tries))


def test_an_answer_that_was_lost_changes_nothing(stream, folder):
    source = ItemSource(folder)
    both = {1: [(1, b"")], 2: [(2, b"")]}
    stream.place(both)
    stream.place(both)
    assert source.take().number == 1
    assert stream.withdraw([1, 2]) == stream.withdraw([1, 2]) == [2]
    stream.place(both)
    assert source.take() is None
    stream.place(both)
    assert stream.withdraw([1]) == []
    assert source.take() is None


# ---- results


def test_results_are_read_on_from_an_offset(stream, folder):
    sink = ItemSink(folder)
    assert stream.results(0, 0) == ([], 0)
    sink.add(1, 5, VALUE, 0.25, b"five")
    sink.add(1, 6, ERROR, 0.5, b"")
    sink.flush()
    first, offset = read_on(stream)
    assert [(one.item, one.bundle, one.kind, one.seconds, data) for one, data in first] == [
        (5, 1, "value", 0.25, b"five"),
        (6, 1, "error", 0.5, b""),
    ]
    sink.add(2, 7, VALUE, 0, b"seven" * 500_000)
    sink.add(2, 8, VALUE, 0, b"eight")
    sink.close()
    second, end = read_on(stream, offset)
    assert [(one.item, data) for one, data in second] == [(7, b"seven" * 500_000), (8, b"eight")]
    assert read_on(stream, end) == ([], end)
    backwards = [one for one, _ in reversed(first + second)]
    assert [data[:5] for data in stream.values(backwards)] == [b"eight", b"seven", b"", b"five"]


def test_results_are_seen_while_the_call_goes_on(stream, folder):
    sink, seen, item = ItemSink(folder), 0, 0
    deadline = time.monotonic() + 30
    while not seen and time.monotonic() < deadline:
        sink.add(1, item, VALUE, 0, b"x")
        item += 1
        time.sleep(0.01)
        seen = len(stream.results(0, 0)[0])
    assert 1 < seen <= item
    sink.close()
    assert [one.item for one in stream.results(0, 0)[0]] == list(range(item))


def test_a_torn_line_is_left_for_the_next_reading():
    line = b'{"item": 1, "bundle": 1, "kind": "value", "seconds": 1, "offset": 0, "length": 2, "crc32": 3}\n'
    for cut in range(len(line)):
        results, taken = parse_results(line + line[:cut])
        assert (len(results), taken) == (1, len(line))
    damaged = (b"\0\0\n", b"[]\n", b"{}\n", line[5:], line.replace(b"value", b"other"), line.replace(b": 2", b": -2"))
    assert len(parse_results(b"".join(damaged) + line)[0]) == 1


def test_a_value_that_is_damaged_is_told_from_the_others(stream, folder):
    sink = ItemSink(folder)
    for item in range(4):
        sink.add(1, item, VALUE, 0, b"%d" % item * 10)
    sink.close()
    with open(os.path.join(folder, "values"), "r+b") as file:
        file.seek(12)
        file.write(b"?")
        file.truncate(35)
    assert [data for _, data in read_on(stream)[0]] == [b"0" * 10, None, b"2" * 10, None]


WRITER = """
import sys
from slurm_ray_flow.remote.driver.items import ItemSink
sink = ItemSink(sys.argv[1])
for item in range(10**9):
    sink.add(item // 100, item, "value", 0, b"%d" % item * 20)
    if item % 100 == 99:
        sink.flush()
"""


def test_what_a_killed_call_has_told_is_there(stream, folder):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, folder])
    try:
        wait_for(lambda: len(stream.results(0, 0)[0]) > 500)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    found, _ = read_on(stream)
    assert [one.item for one, _ in found] == list(range(len(found)))
    assert all(data == b"%d" % one.item * 20 for one, data in found)


def test_a_full_disk_loses_no_result_that_was_told(stream, folder):
    import resource

    sink = ItemSink(folder)
    sink.add(1, 1, VALUE, 0, b"a" * 1000)
    sink.flush()
    sink.add(1, 2, VALUE, 0, b"b" * 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(OSError, match="large"):
            sink.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [one.item for one, _ in read_on(stream)[0]] == [1]
    sink.close()
    assert [(one.item, data[:1]) for one, data in read_on(stream)[0]] == [(1, b"a"), (2, b"b")]


def test_all_of_it_is_private_and_written_by_one(stream, folder):
    before = os.umask(0)
    try:
        ItemSink(folder).close()
    finally:
        os.umask(before)
    stream.place({1: [(1, b"")]})
    stream.close()
    assert {oct(path.stat().st_mode & 0o777) for path in os.scandir(folder)} == {"0o600"}
    assert os.stat(folder).st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        ItemSink(folder)
