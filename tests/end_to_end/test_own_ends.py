"""KeyboardInterrupt and its like, raised by the function itself: its own outcome, and nobody's Ctrl-C at home."""

import asyncio
import sys

import pytest

from slurm_ray_flow import Crashed, Handle, RunState, slurm_ray_flow

pytestmark = pytest.mark.server

KINDS = [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


def raising(kind):
    def function(number):
        if number != 1:
            return number
        try:
            raise LookupError("before")
        except LookupError:
            raise kind("its own")  # noqa: B904 - the context is looked at

    return slurm_ray_flow(function, cluster="local", keep_warm="60s")


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_function_raises_comes_home_and_the_next_call_works(server, api, kind):
    function = raising(kind)
    with pytest.raises(kind, match="its own") as caught:
        function(1)
    assert isinstance(caught.value.__context__, LookupError)
    assert function(4) == 4
    handle = function.submit(1)
    with pytest.raises(kind):
        handle.result(timeout=180)
    assert handle.status() is RunState.FAILED
    assert api.get(f"/flow_runs/{handle.run_id}")["state_type"] == "FAILED"
    with pytest.raises(kind):
        Handle.attach(handle.run_id).result(timeout=180)


@pytest.mark.parametrize("kind", KINDS)
def test_an_awaiting_function_too(server, kind):
    async def function():
        raise kind("its own")

    launched = slurm_ray_flow(function, cluster="local", keep_warm="60s")

    async def caller():
        try:
            await launched()
        except BaseException as error:
            return type(error)

    assert asyncio.run(caller()) is kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_keeps_the_other_values(server, kind):
    handles = raising(kind).map([0, 1, 2])
    values = handles.results(timeout=180, return_exceptions=True)
    assert (values[0], type(values[1]), values[2]) == (0, kind, 2)
    with pytest.raises(kind):
        handles[1].result()


@pytest.mark.parametrize(("code", "said"), [(0, "sys.exit(0)"), ("no data", "no data")])
def test_an_exit_of_the_function_is_none_of_this_process(server, code, said):
    function = slurm_ray_flow(lambda: sys.exit(code), cluster="local", keep_warm="60s")
    with pytest.raises(Crashed) as caught:
        function()
    assert said in caught.value.what
