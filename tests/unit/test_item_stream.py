"""Bundles of items go to a running call, results come back: both sides on this machine, without a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slurm_ray_flow import LocalMachine
from slurm_ray_flow.blocks.item_stream import ItemStream
from slurm_ray_flow.core.items import parse_results
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.remote.driver.items import ItemSink, ItemSource
from slurm_ray_flow.remote.shared.items import CRASHED, ERROR, VALUE, bundle_name, pack_bundle, unpack_bundle
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
    sink.add(1, 6, ERROR, 0.5, b"", "ValueError at a.py:1 in f", 'ValueError: "\u00e9\ud800"', (3, 10, 20))
    first, offset = read_on(stream)
    assert [(one.item, one.bundle, one.kind, one.seconds, data) for one, data in first] == [
        (5, 1, "value", 0.25, b"five"),
        (6, 1, "error", 0.5, b""),
    ]
    assert [(one.group, one.message, one.log) for one, _ in first] == [
        ("", "", None),
        ("ValueError at a.py:1 in f", 'ValueError: "\u00e9\\ud800"', (3, 10, 20)),
    ]
    sink.add(2, 7, VALUE, 0, b"seven" * 500_000)
    sink.add(2, 8, CRASHED, 0, b"eight")
    second, end = read_on(stream, offset)
    assert [(one.item, data) for one, data in second] == [(7, b"seven" * 500_000), (8, b"eight")]
    assert read_on(stream, end) == ([], end)
    backwards = [one for one, _ in reversed(first + second)]
    assert [data[:5] for data in stream.values(backwards)] == [b"eight", b"seven", b"", b"five"]


APPENDER = """
import sys
from slurm_ray_flow.remote.driver.items import ItemSink
sink, number = ItemSink(sys.argv[1]), int(sys.argv[2])
sys.stdin.read()
for item in range(2000):
    sink.add(number, item, "value", 0, b"%d-%d " % (number, item) * (item % 50))
"""


def test_several_processes_write_at_once(stream, folder):
    command = [sys.executable, "-c", APPENDER, folder]
    writers = [subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE) for number in range(3)]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found, _ = read_on(stream)
    assert len(found) == 6000
    assert all(data == b"%d-%d " % (one.bundle, one.item) * (one.item % 50) for one, data in found)
    assert {(one.bundle, one.item) for one, _ in found} == {(n, item) for n in range(3) for item in range(2000)}


def test_a_torn_line_is_left_for_the_next_reading():
    line = b'{"item": 1, "bundle": 1, "kind": "value", "seconds": 1, "offset": 0, "length": 2, "crc32": 3}\n'
    for cut in range(len(line)):
        results, taken = parse_results(line + line[:cut])
        assert (len(results), taken) == (1, len(line))
    damaged = (b"\0\0\n", b"[]\n", b"{}\n", line[5:], line.replace(b"value", b"other"), line.replace(b": 2", b": -2"))
    assert len(parse_results(b"".join(damaged) + line)[0]) == 1


def test_a_torn_line_costs_no_line_that_another_process_writes_after_it():
    lines = [
        b'{"item": %d, "bundle": 1, "kind": "error", "seconds": 1, "offset": 0, "length": 2, "crc32": 3, "group": "G",'
        b' "message": "KeyError: {\\"item\\": 5}", "log": [1, 2, 3]}\n' % number
        for number in range(2)
    ]
    for cut in range(len(lines[0]) - 2):
        results, _ = parse_results(lines[0][:cut] + lines[1] + lines[0])
        assert [one.item for one in results] == [1, 0], cut


@pytest.mark.parametrize("log", ["[1, 2]", "[1, 2, -3]", "[1, 2, true]", "3", '["1", 2, 3]', "null"])
def test_what_is_said_of_a_failure_is_no_reason_to_lose_a_result(log):
    line = (
        b'{"item": 1, "bundle": 1, "kind": "crashed", "seconds": 0.5, "offset": 0, "length": 2, "crc32": 3, "group": 7,'
    )
    [result] = parse_results(line + b' "message": null, "log": %s, "later": 1}\n' % log.encode())[0]
    assert (result.group, result.message, result.log) == ("", "", None)


def test_a_value_that_is_damaged_is_told_from_the_others(stream, folder):
    sink = ItemSink(folder)
    for item in range(4):
        sink.add(1, item, VALUE, 0, b"%d" % item * 10)
    with open(os.path.join(folder, "values"), "r+b") as file:
        file.seek(12)
        file.write(b"?")
        file.truncate(35)
    results, _ = stream.results(0, 0)
    assert list(stream.values(results, patience=0)) == [b"0" * 10, None, b"2" * 10, None]


def test_a_value_that_comes_after_its_line_is_waited_for(stream, folder):
    sink = ItemSink(folder)
    for item in range(3):
        sink.add(1, item, VALUE, 0, b"%d" % item * 10)
    values = Path(folder, "values")
    content = values.read_bytes()
    for early in (content[:15], content[:10] + b"\0" * 10 + content[20:]):
        values.write_bytes(early)
        results, _ = stream.results(0, 0)
        coming = stream.values(results, patience=30)
        assert next(coming) == b"0" * 10
        late = threading.Timer(0.3, values.write_bytes, [content])
        late.start()
        assert list(coming) == [b"1" * 10, b"2" * 10]
        late.join()


WRITER = """
import sys
from slurm_ray_flow.remote.driver.items import ItemSink
sink = ItemSink(sys.argv[1])
for item in range(10**9):
    sink.add(item // 100, item, "value", 0, b"%d" % item * 20)
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


@pytest.fixture
def disk():
    """Sets how large files may become, as a full disk does: `disk(bytes)`, `disk()` for no limit."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda limit=before[0]: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_loses_no_result(stream, folder, disk):
    sink = ItemSink(folder)
    sink.add(1, 1, VALUE, 0, b"a" * 1000)
    disk(50_000)
    for _ in range(2):
        with pytest.raises(OSError, match=r"large|space"):
            sink.add(1, 2, VALUE, 0, b"b" * 100_000)
    disk()
    assert [one.item for one, _ in read_on(stream)[0]] == [1]
    sink.add(1, 2, VALUE, 0, b"b" * 100_000)
    assert [(one.item, data) for one, data in read_on(stream)[0]] == [(1, b"a" * 1000), (2, b"b" * 100_000)]


def test_a_line_that_a_full_disk_cuts_short_damages_no_other(stream, folder, disk):
    tries, other = [], ItemSink(folder)

    def retry(error, number):
        tries.append(type(error))
        if number == 2:
            disk()
            other.add(1, 2, VALUE, 0, b"")  # behind the torn line
        return True

    sink = ItemSink(folder, retry)
    sink.add(1, 1, VALUE, 0, b"")
    disk(sink.results_size + 30)
    sink.add(1, 3, VALUE, 0, b"")
    assert tries == [OSError] * 3
    sink.add(1, 4, VALUE, 0, b"")
    assert [one.item for one, _ in read_on(stream)[0]] == [1, 2, 3, 4]


def test_all_of_it_is_private(stream, folder):
    before = os.umask(0)
    try:
        ItemSink(folder).close()
    finally:
        os.umask(before)
    stream.place({1: [(1, b"")]})
    stream.close()
    assert {oct(path.stat().st_mode & 0o777) for path in os.scandir(folder)} == {"0o600"}
    assert os.stat(folder).st_mode & 0o777 == 0o700
