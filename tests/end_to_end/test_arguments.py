"""A call, `submit`, `map` and `local` hand over exactly the objects they got, and bring values and errors home."""

import asyncio
import collections
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy
import prefect
import pytest

import prepared
from slurm_ray_flow import PayloadError, slurm_ray_flow
from support import wait_for

pytestmark = pytest.mark.server

NOT_UTF8 = os.fsdecode(b"mesure-\xe9.csv")
MISSING = object()


def newest(api, name):
    wanted = {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC", "limit": 1}
    [found] = api.post("/flow_runs/filter", wanted)
    return found


class Point(NamedTuple):
    x: int
    y: int = 0


class Sized(Protocol):
    def size(self) -> int: ...


class Name(str):
    pass


@slurm_ray_flow
def seen(
    json: Iterable[float],
    /,
    copy: Sequence[int],
    number: int,
    text: str,
    _hidden: bool = False,
    *many: list[int],
    schema: dict[str, int],
    model_config: Sized = None,
    default=MISSING,
    **named: float,
) -> list[tuple[str, str]]:
    """What everything is that the function gets, and whether what was one object is one."""
    everything = [json, copy, number, text, _hidden, *many, schema, model_config, *named.values()]
    told = [(type(one).__name__, ascii(one)) for one in everything]
    return [*told, ("same", str(many[0] is many[1])), ("left out", str(default is MISSING)), ("named", str([*named]))]


GRID = [[1, 2]]
CALLS = [
    ((1.0, 2.0), (1,), numpy.int64(8889891283923431349), Name("n"), numpy.bool_(True), GRID, GRID),
    ({1, 2}, numpy.arange(3), 2**70, NOT_UTF8, 1, (1,), b"\xff"),
]
NAMED = {
    "schema": {"$ref": "#/$defs/Node", "__prefect_kind": "json"},
    "model_config": collections.defaultdict(list, a=[1]),
    "five": numpy.float64(0.1),
    "six": collections.Counter("aab"),
    "seven": Point(1),
    "eight": float("inf"),
    "self": collections.OrderedDict(b=1, a=2),
}


def test_everything_arrives_as_it_was_given(server):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        wanted = [seen.local(*args, **NAMED) for args in CALLS]
        assert seen(*CALLS[0], **NAMED) == wanted[0]
        assert seen.submit(*CALLS[1], **NAMED).result(120) == wanted[1]
        assert seen.map(*zip(*CALLS, strict=True), **NAMED).results(timeout=180) == wanted


@slurm_ray_flow
async def mine(first, second):
    return type(first).__name__, first is second


def test_an_async_function_gets_the_same_and_refuses_at_the_call(server):
    value = numpy.int8(3)
    assert asyncio.run(mine(value, value)) == ("int8", True)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'second'"):
        mine(1)


def test_local_hands_over_the_object_itself():
    value = collections.Counter("aab")
    assert slurm_ray_flow(lambda one: one).local(value) is value


def test_what_cannot_travel_is_refused_before_anything_starts(server, api):
    seen(*CALLS[0], **NAMED)
    before = newest(api, "seen")["id"]
    values = (number for number in range(3))
    for call in (seen, seen.submit):
        with pytest.raises(PayloadError, match=r"'json'.*generator"):
            call(values, [1], 1, "a", schema={})
    assert newest(api, "seen")["id"] == before
    assert next(values) == 0


@prefect.task
def tenfold(number):
    return number * 10


def test_what_prefect_resolves_is_resolved_in_a_flow(server):
    @slurm_ray_flow
    def kinds(first: int, several: Any, other: dict[str, Any], default: int = 4) -> Any:
        return first, several, type(other).__name__, dict(other), default

    @prefect.flow
    def outer():
        future, state = tenfold.submit(1), tenfold(2, return_state=True)
        other = collections.OrderedDict({"$ref": "#/a"})
        ended = kinds("text", 2, other, return_state=True, wait_for=[future])
        return kinds(future, [future, {"a": state}], other), kinds.submit(1, (state,), other).result(), ended.result()

    rest = ("OrderedDict", {"$ref": "#/a"}, 4)
    assert outer() == ((10, [10, {"a": 20}], *rest), (1, (20,), *rest), ("text", 2, *rest))


@slurm_ray_flow
def read(path, *, fail):
    print("reads", path)
    if fail:
        raise ValueError(path)
    with open(path) as file:
        return {path: file.read()}


def test_a_name_that_is_not_utf8_is_an_argument_a_value_a_line_and_an_error(server, api, tmp_path, capfd):
    path = str(tmp_path / NOT_UTF8)
    (tmp_path / NOT_UTF8).write_text("1,2,3")
    assert read(path, fail=False) == {path: "1,2,3"}
    assert newest(api, "read")["parameters"]["path"].keys() == {"$srf", "name", "type"}
    with pytest.raises(ValueError, match="mesure-") as caught:
        read(path, fail=True)
    assert caught.value.args == (path,)
    handle = read.submit(path, fail=True)
    with pytest.raises(ValueError, match="mesure-"):
        handle.result(120)
    assert any("mesure-" in line for line in handle.logs())
    ended = api.get(f"/flow_runs/{handle.run_id}")
    assert ended["state_type"] == "FAILED"
    assert "mesure-\\udce9.csv" in ended["state"]["message"]
    wanted = {"logs": {"flow_run_id": {"any_": [handle.run_id]}}}
    wait_for(lambda: any("raised ValueError" in log["message"] for log in api.post("/logs/filter", wanted)))
    assert "surrogates" not in "".join(capfd.readouterr())


IN_A_FOLDER = """
import helper
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(include=["*.csv"])
def listed():
    import os
    return helper.NAME, sorted(name for name in os.listdir() if name.endswith(".csv"))

if __name__ == "__main__":
    print(ascii(listed()))
"""


def test_a_project_in_a_folder_that_is_not_utf8(server, tmp_path):
    folder = tmp_path / os.fsdecode(b"donn\xe9es")
    folder.mkdir()
    (folder / NOT_UTF8).touch()
    (folder / "pyproject.toml").touch()
    (folder / "helper.py").write_text("NAME = 'helper'\n")
    (folder / "script.py").write_text(IN_A_FOLDER)
    done = prepared.run([sys.executable, "script.py"], cwd=folder)
    assert done.stdout.strip() == ascii(("helper", [NOT_UTF8])), done.stderr


def test_what_people_write_on_the_command_line_is_cast(srf, server, tmp_path):
    (tmp_path / "typed_job.py").write_text(
        "from pathlib import Path\n"
        "def job(n: float, place: Path, several: set[int]): return [type(x).__name__ for x in (n, place, several)]\n"
    )
    done = srf("run", f"{tmp_path}/typed_job.py:job", "--arg", "n=2", "--arg", "place=q", "--arg", "several=[1]")
    assert "'float', 'PosixPath', 'set'" in done.stdout, done.stderr
    refused = srf("run", f"{tmp_path}/typed_job.py:job", "--arg", "n=x", "--arg", "place=q", "--arg", "several=[1]")
    assert refused.returncode == 2
    assert "n: Input should be a valid number" in refused.stderr
