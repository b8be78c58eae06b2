"""A decorated function is a Prefect flow: parameters, deployments, reruns."""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import numpy
import prefect
import pytest

import prepared
from slurm_ray_flow import Handle, slurm_ray_flow
from slurm_ray_flow.core.home import home
from support import BOUND, wait_for

pytestmark = pytest.mark.server

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
DEFAULT = numpy.arange(3)


def newest(api, name):
    wanted = {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC", "limit": 1}
    [found] = api.post("/flow_runs/filter", wanted)
    return found


def run_deployed(api, deployment, parameters, seconds=BOUND):
    made = api.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    wait_for(lambda: api.get(f"/flow_runs/{made['id']}")["state_type"] in FINAL, seconds)
    return api.get(f"/flow_runs/{made['id']}")


def deployed(api, name):
    wait_for(lambda: api.post("/deployments/filter", {"deployments": {"name": {"any_": [name]}}}))
    return api.post("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})[0]


@slurm_ray_flow
def positional(first, /, *many, key, **named):
    return first, many, key, named


@slurm_ray_flow
def of_default(array=DEFAULT):
    return int(array.sum())


def test_all_kinds_of_parameters(server):
    assert positional(1, 2, 3, key=4, five=5) == (1, (2, 3), 4, {"five": 5})


def test_an_array_as_default(server):
    assert of_default() == 3
    assert of_default(DEFAULT + 1) == 6


def test_what_is_typed_is_shown_and_no_call_from_here_is_cast(work, api):
    import served

    told = served.typed("2", pair={"left": 1}, model=served.Model(number=4), place=served.Path("q"))
    assert told.startswith("('2', Model(number=4), {'left': 1}, ")
    shown = newest(api, "typed")["parameters"]
    assert shown["model"] == {"number": 4}
    assert (shown["count"]["type"], shown["pair"]["type"]) == ("str", "dict")  # what they say would be another value
    assert (shown["place"], shown["when"], shown["extra"]) == ("q", "2020-01-01T00:00:00", None)


def test_what_is_large_or_has_no_json_stays_at_home_and_a_rerun_gets_it(work, api, served):
    import served as module

    process = served("serve")
    expected = module.typed(3, extra=lambda number: {number}, values=[0.5] * 50_000)
    assert expected.endswith("50000, {3})")
    stored = newest(api, "typed")["parameters"]
    assert len(json.dumps(stored)) < 1000
    again = run_deployed(api, deployed(api, "by-name"), stored)
    assert again["state_type"] == "COMPLETED", again["state"]
    assert Handle.attach(again["id"]).result(180) == expected
    assert "slurm-ray-flow" in again["tags"]
    edited = {"count": 5, "pair": {"left": 3}, "when": "2022-01-01T00:00:00Z", "kind": "b"}
    ended = run_deployed(api, deployed(api, "by-name"), edited)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert "Pair(left=3, right=2.0), 'b', PosixPath('x'), 2022" in Handle.attach(ended["id"]).result(180)
    assert process.poll() is None


def test_a_million_numbers_are_not_looked_at_one_by_one(work, api):
    values = [number / 7 for number in range(1_000_000)]
    home = work.give_back(values)
    assert home == values
    assert set(newest(api, "give-back")["parameters"]["value"]) == {"$srf", "name", "type"}


def test_inside_another_flow_and_in_a_loop(work):
    @prefect.flow
    def outer():
        return work.triple(2)

    async def loop():
        return work.triple(3), await work.later(4)

    assert outer() == 6
    assert asyncio.run(loop()) == (9, 5)


LATER = """
import sys, served
from prefect.client.orchestration import get_client
from slurm_ray_flow.interface.session import on_the_server
with on_the_server(), get_client(sync_client=True) as client:
    for run_id in sys.argv[1:]:
        print(type(client.read_flow_run(run_id).state.result()).__name__)
"""


def test_another_process_gets_the_value_from_prefect(work, api):
    work.give_back([1, 2])
    small = newest(api, "give-back")["id"]
    work.give_back(DEFAULT)
    large = newest(api, "give-back")["id"]
    command = [sys.executable, "-c", LATER, small, large]
    found = prepared.run(command)
    assert found.stdout.split() == ["list", "ndarray"], found.stderr


def test_options_of_prefect(work, api):
    changed = work.triple.with_options(name="renamed", memory="1G", description="said", timeout_seconds=60)
    assert changed(number=1) == 3
    assert newest(api, "renamed")["state_type"] == "COMPLETED"
    assert (changed.description, changed.options.memory) == ("said", 1 << 30)
    state = work.triple(5, return_state=True)
    assert (state.is_completed(), state.result()) == (True, 15)


PLAIN_FIRST = """
from prefect import flow
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow
def inner(number):
    return number + 1

@flow
def outer():
    return inner(1)

if __name__ == "__main__":
    print("value", outer())
"""


def test_inside_a_plain_flow_that_prefect_put_on_a_server_of_its_own(script, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "100")  # 20 are few under load
    done = script(PLAIN_FIRST)
    assert "value 2" in done.stdout, done.stderr


def stored(api, name):
    """Where Prefect keeps the value of the newest run of a flow, and that run's id."""
    found = newest(api, name)
    return Path(found["state"]["data"]["storage_key"]), found["id"]


def test_a_value_is_kept_with_its_run_privately_and_goes_with_it(work, api, srf):
    assert work.triple(5) == 15
    kept, run_id = stored(api, "triple")
    assert (kept.parent, kept.parent.stat().st_mode & 0o777) == (home() / "runs" / f"{run_id}.result", 0o700)
    assert json.loads(kept.read_text()) == {"value": 15}
    assert srf("clean", "--run", run_id).returncode == 0
    assert not kept.parent.exists()


def test_a_value_goes_where_the_user_has_said(script, api, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(tmp_path / "mine"))
    name = f"f{uuid.uuid4().hex}"
    texts = ["from slurm_ray_flow import slurm_ray_flow", "@slurm_ray_flow", f"def {name}(): return 1"]
    done = script("\n".join([*texts, f"if __name__ == '__main__': {name}()"]))
    assert done.returncode == 0, done.stderr
    kept, run_id = stored(api, name)
    assert kept.parent == tmp_path / "mine"
    assert not (home() / "runs" / f"{run_id}.result").exists()
