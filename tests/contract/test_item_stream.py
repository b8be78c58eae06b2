"""Items go to a running call and results come back, on every kind of cluster."""

import pickle

from slurm_ray_flow.blocks.item_stream import ItemStream
from slurm_ray_flow.core.items import outcome_of_item
from support import wait_for


def _work(folder):
    """Double each item's number; a `wait` waits until home has put a file `go` there."""
    import os
    import time

    from slurm_ray_flow.remote.driver.items import ItemSink, ItemSource
    from slurm_ray_flow.remote.shared.items import ERROR, VALUE

    sink, count = ItemSink(folder), 0
    for bundle in ItemSource(folder, idle_seconds=60):
        for item, data in bundle.items:
            began = time.monotonic()
            while data == b"wait" and not os.path.exists(os.path.join(folder, "go")) and time.monotonic() < began + 60:
                time.sleep(0.02)
            kind, result = (ERROR, b"no number") if data == b"bad" else (VALUE, b"%d" % (2 * item))
            sink.add(bundle.number, item, kind, time.monotonic() - began, result)
            count += 1
    sink.close()
    return count


def test_each_result_comes_once_and_a_bundle_that_waits_is_withdrawn(lab, cluster):
    paths = lab.start("run", _work, str(cluster.root_folder / "runs" / "run" / "items"))
    stream = ItemStream(cluster, paths)
    stream.place({1: [(10, b""), (11, b"bad")], 2: [(20, b""), (21, b"wait")], 3: [(30, b"")]})
    found, offset = [], 0

    def read_on():
        nonlocal offset
        results, offset = stream.results(offset, 1)
        found.extend(zip(results, stream.values(results), strict=True))
        return found

    wait_for(lambda: len(read_on()) >= 3)
    assert stream.withdraw([1, 2, 3]) == [3], "the call is busy with the second one"
    cluster.write(paths.items / "go", b"")
    stream.place({4: [(40 + number, b"x" * 1000) for number in range(300)]})
    stream.close()
    assert lab.value(paths) == 304
    wait_for(lambda: len(read_on()) >= 304)
    assert [(one.item, one.bundle, one.kind, data) for one, data in found] == [
        (10, 1, "value", b"20"), (11, 1, "error", b"no number"), (20, 2, "value", b"40"), (21, 2, "value", b"42"),
        *((40 + number, 4, "value", b"%d" % (80 + 2 * number)) for number in range(300)),
    ]  # fmt: skip
    assert found[3][0].seconds > 0
    assert stream.results(offset, 0) == ([], offset)
    assert stream.withdraw([4]) == []
    lab.gone(paths)


def _described(number, factor):
    """Ten times the number, in the environment of a pilot's worker; the numbers 13 and 17 end it and fail."""
    import os

    print("item", number, flush=True)
    if number == 13:
        os._exit(2)
    if number == 17:
        raise LookupError(number)
    return number * factor


def test_a_pilot_takes_bundles_and_blames_one_item_for_the_death_of_its_worker(lab, cluster):
    settings = {"workers": 2, "idle_seconds": 120.0, "threads": 1}
    paths = lab.start("pilot", _described, 10, pilot=settings)
    stream = ItemStream(cluster, paths)
    stream.place({1: [(number, pickle.dumps(((number,), {}))) for number in range(10)]})
    found, offset = {}, 0

    def read_on(count):
        nonlocal offset
        results, offset = stream.results(offset, 1)
        for result, data in zip(results, stream.values(results), strict=True):
            assert result.item not in found
            found[result.item] = result, outcome_of_item(result.kind, data, "there")
        return len(found) >= count

    wait_for(lambda: read_on(10), 120)
    stream.place({2: [(number, pickle.dumps(((number,), {}))) for number in range(10, 200)]})
    stream.close()
    assert lab.value(paths) == {"done": 198, "failed": 1, "crashed": 1, "left": 0, "interrupted": []}
    wait_for(lambda: read_on(200))
    assert {item: outcome.value for item, (_, outcome) in found.items() if not outcome.exception} == {
        number: 10 * number for number in range(200) if number not in {13, 17}
    }
    assert [found[item][0].kind for item in (13, 17)] == ["crashed", "error"]
    assert isinstance(found[17][1].exception, LookupError)
    assert {stream.printed(result).decode() for result, _ in found.values()} == {f"item {n}\n" for n in range(200)}
    lab.gone(paths)
