"""A function on this machine, through the whole launch, on a real Prefect server: what the caller gets."""

import asyncio
import functools
import os
import pickle
import threading

import numpy
import pytest

from slurm_ray_flow import (
    Crashed,
    Handle,
    OptionError,
    OutOfMemory,
    PayloadError,
    Rejected,
    ResultError,
    RunState,
    TimeLimit,
    slurm_ray_flow,
)
from support import wait_for

pytestmark = pytest.mark.server


def test_a_value_comes_home_with_a_module_of_the_project(work, capfdbinary):
    assert work.triple(14) == 42
    assert b"tripling 14\n" in capfdbinary.readouterr().out


def test_none_comes_home(work):
    assert work.nothing() is None


def test_default_arguments_count(work):
    assert work.triple() == 6


def test_the_plain_function_stays(work):
    assert work.triple.local(5) == 15


def test_an_async_function_is_awaited(work):
    assert asyncio.run(work.later(1)) == 2


def test_the_functions_own_exception_is_raised(work):
    import helpers

    with pytest.raises(helpers.HelperError) as caught:
        work.fail(7)
    assert caught.value.code == 7
    assert caught.value.args == (7, "outer")
    assert isinstance(caught.value.__cause__, KeyError)
    assert "in fail" in "".join(caught.value.__notes__)


def test_what_cannot_be_pickled_is_named(work):
    with pytest.raises(ResultError, match="model"):
        work.unpicklable()


def test_an_argument_that_cannot_be_pickled_is_named_before_anything_starts(work):
    with pytest.raises(PayloadError, match="value"):
        work.give_back(number for number in range(3))


def test_a_process_that_leaves_says_so(work):
    with pytest.raises(Crashed, match="3"):
        work.leave(3)


def test_a_segmentation_fault_is_one(work):
    with pytest.raises(Crashed, match="SIGSEGV"):
        work.crash()


def test_too_much_memory(work):
    with pytest.raises(OutOfMemory, match="MiB"):
        work.eat()


def test_too_much_time(work):
    with pytest.raises(TimeLimit):
        work.too_long()


def test_more_than_there_is_is_refused_with_the_limit(work):
    with pytest.raises(Rejected, match=r"cpus_per_node=10000.*there are"):
        work.triple.with_options(cpus_per_node=10_000)(1)
    with pytest.raises(Rejected, match="nodes"):
        work.triple.with_options(nodes=2)(1)


def test_an_unknown_cluster_is_refused(work):
    with pytest.raises(OptionError, match="there is no cluster 'locl'"):
        work.triple.with_options(cluster="locl")(1)


def test_variables_of_the_environment(work):
    assert work.colour() == "red"
    assert "COLOUR" not in os.environ


def test_a_function_writes_files_as_its_user_does(work, tmp_path):
    before = os.umask(0o002)
    try:
        work.sleep(0, str(tmp_path / "mark"))
    finally:
        os.umask(before)
    assert (tmp_path / "mark").stat().st_mode & 0o777 == 0o664


def test_a_burst_of_lines_loses_none(work, capfdbinary):
    assert work.chatter(100_000) == 100_000
    lines = capfdbinary.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(b"line ")] == [b"line %d" % number for number in range(100_000)]


def test_an_array_keeps_its_bytes(work):
    array = numpy.arange(1_000_000, dtype="float32").reshape(1000, 1000)
    home = work.give_back(array)
    assert home.dtype == array.dtype
    assert (home == array).all()
    home[0, 0] = 5  # it is the caller's own


def test_one_object_twice_stays_one(work):
    shared = [1]
    home = work.give_back([shared, shared, (1, 2), {3}])
    assert home == [[1], [1], (1, 2), {3}]
    assert home[0] is home[1]


@pytest.mark.parametrize("kind", ["lambda", "partial", "method", "closure", "callable"])
def test_any_callable_can_go(work, kind):
    import helpers

    offset = 10

    def closure(number):
        return helpers.triple(number) + offset

    class Adder:
        def __call__(self, number):
            return number + 1

    functions = {
        "lambda": (lambda number: number * 2, 8),
        "partial": (functools.partial(pow, 2), 16),
        "method": (work.Holder(5).add, 9),
        "closure": (closure, 22),
        "callable": (Adder(), 5),
    }
    function, expected = functions[kind]
    launched = function if kind == "method" else slurm_ray_flow(function)
    assert launched(4) == expected


def test_a_cached_value_is_given_back(work):
    first = work.moment(1)
    assert work.moment(1) == first
    assert work.moment(2) != first
    assert work.moment.with_options(cache=None)(1) != first


def test_two_launches_at_once_keep_apart(work):
    values = {}

    def call(number):
        values[number] = work.give_back({"number": number})

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert values == {number: {"number": number} for number in range(4)}


def test_a_handle_comes_at_once_and_can_be_found_again(work):
    handle = work.sleep.submit(1.5)
    assert not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.05)
    again = Handle.attach(handle.run_id[:13])
    assert pickle.loads(pickle.dumps(handle)).run_id == handle.run_id
    assert again.result(timeout=180) == 1.5
    assert handle.result(timeout=180) == 1.5
    assert again.status() is RunState.SUCCEEDED
    assert list(again.logs()) == ["asleep"]
    assert again.cancel() is False


def test_a_cancelled_run_is_gone(work, tmp_path):
    from slurm_ray_flow import Cancelled

    mark = tmp_path / "pid"
    handle = work.sleep.submit(60, str(mark))
    wait_for(mark.exists)
    assert handle.cancel() is True
    assert handle.status() is RunState.CANCELLED
    assert not os.path.exists(f"/proc/{mark.read_text()}")
    with pytest.raises(Cancelled):
        handle.result(timeout=180)


@pytest.mark.ray
def test_ray_tasks_see_the_projects_modules(work):
    import parallel

    assert parallel.squares(10) == sum((3 * number) ** 2 for number in range(10))


@pytest.mark.ray
def test_a_warm_cluster_takes_the_next_call(work):
    import parallel

    first, address = parallel.warm(1)
    second, same_address = parallel.warm(2)
    assert (first, second) == (3, 6)
    assert address == same_address


@pytest.mark.ray
def test_a_busy_warm_cluster_is_not_waited_for(work, tmp_path):
    import parallel

    mark, release = tmp_path / "mark", tmp_path / "release"
    slow = parallel.warm_and_slow.submit(str(mark), str(release))
    wait_for(mark.exists)
    _, address = parallel.warm(1)
    assert not slow.done()
    release.touch()
    assert slow.result(180) != address
