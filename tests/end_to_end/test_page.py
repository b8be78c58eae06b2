"""How a launch reads in Prefect: name and tags, artifacts, its log, and the event when it fails."""

import json
import logging
import uuid

import pytest

from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.errors import Cancelled, Crashed, SlurmRayFlowError, TimeLimit
from slurm_ray_flow.core.prefect_events import RUN_FAILED
from slurm_ray_flow.flows.campaign import campaign
from support import wait_for

pytestmark = pytest.mark.server


@pytest.fixture
def functions(work):
    import levels

    return levels


def newest(api, name):
    wanted = {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC", "limit": 1}
    return api.post("/flow_runs/filter", wanted)[0]


def artifacts(api, run_id):
    found = api.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    return {one["key"].partition("-")[0]: one for one in found if one["key"]}


def logged(api, run_id, last):
    def lines():
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [(line["level"], line["message"]) for line in api.post("/logs/filter", wanted)]

    wait_for(lambda: any(last in text for _, text in lines()))
    return lines()


def failures(api, run_id):
    wanted = {"filter": {"event": {"name": [RUN_FAILED]}, "resource": {"id": [f"slurm-ray-flow.run.{run_id}"]}}}
    wait_for(lambda: api.post("/events/filter", wanted)["events"])
    [event] = api.post("/events/filter", wanted)["events"]
    return event["payload"]


def test_a_launch_reads_well(functions, api):
    functions.levels(9)
    run = newest(api, "levelled")
    assert run["name"] == "levelled on local"
    assert set(run["tags"]) == {"slurm-ray-flow", "levelled", "local", "local-machine"}
    wait_for(lambda: artifacts(api, run["id"]).keys() >= {"run", "files", "progress"})
    wait_for(lambda: artifacts(api, run["id"])["progress"]["data"] == 100)
    shown = artifacts(api, run["id"])
    assert run["id"] in shown["run"]["data"] and f"srf logs {run['id'][:8]} --follow" in shown["run"]["data"]
    assert "500.0 MiB, 5 min 0 s" in shown["run"]["data"]
    files = {row["file"].rpartition("/")[2] for row in json.loads(shown["files"]["data"])}
    assert files == {"levels.py", "helpers.py"}
    assert shown["progress"]["created"] != shown["progress"]["updated"]
    lines = logged(api, run["id"], "Finished in state Completed")
    assert not [text for level, text in lines if level > logging.INFO]
    assert any("WARNING:root:mind this" in text and "Traceback of mine" in text for _, text in lines)
    assert any(text.startswith("scan_imports: ") for _, text in lines)


def test_a_failure_is_told_once_with_the_function_s_own_traceback_and_by_an_event(functions, api):
    word = uuid.uuid4().hex
    with pytest.raises(ValueError, match=word):
        functions.broken(word)
    run = newest(api, "broken")
    lines = logged(api, run["id"], "Finished in state Failed")
    [error] = [text for level, text in lines if level >= logging.ERROR]
    assert f"ValueError: broken by {word}" in error and "levels.py" in error
    assert "flow_engine" not in error
    said = failures(api, run["id"])
    assert (said["cause"], said["cluster"], said["function"]) == ("user_code", "local", "broken")


@pytest.mark.parametrize(("function", "said"), [("levels:broken", "0 of 1 done, 1 failed"), ("none:at_all", "'none'")])
def test_a_campaign_that_fails_says_so_once_and_plainly(functions, api, server, function, said):
    with connected(server), pytest.raises(SlurmRayFlowError, match=said):
        campaign(function, ["a value"])
    lines = logged(api, newest(api, "campaign")["id"], "Finished in state Failed")
    [error] = [text for level, text in lines if level >= logging.ERROR]
    assert said in error and "try:" in error
    assert "flow_engine" not in error


def test_a_run_that_ran_out_of_time_says_so_once_and_names_the_cause(work, api):
    with pytest.raises(TimeLimit):
        work.too_long()
    run = newest(api, "too-long")
    lines = logged(api, run["id"], "Finished in state Failed")
    [error] = [text for level, text in lines if level >= logging.ERROR]
    assert error.startswith("TimeLimit: ") and "try:" in error
    assert failures(api, run["id"])["cause"] == "time_limit"


def see_ends(api, run_id, *ends):
    """The states of a run's last steps come to be these; Prefect writes them down after the run."""

    def found():
        known = api.post("/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run_id]}}})
        return sorted(
            (one["name"], one["state_type"]) for one in known if one["name"] in {"execute_call", "fetch_outcome"}
        )

    wait_for(lambda: found() == sorted(ends))


def test_a_step_that_failed_looks_failed(functions, work, api):
    with pytest.raises(ValueError, match="twice"):
        functions.broken.with_options(retry_on=ValueError, retries=1)("twice")
    called, fetched = ("execute_call", "FAILED"), ("fetch_outcome", "COMPLETED")
    see_ends(api, newest(api, "broken")["id"], called, fetched, called, fetched)
    with pytest.raises(Crashed):
        work.leave(3)
    see_ends(api, newest(api, "leave")["id"], called)


@pytest.mark.parametrize("how", ["by srf", "in Prefect"])
def test_so_does_one_that_was_cancelled(work, api, how):
    handle = work.sleep.submit(60)
    wait_for(lambda: any("asleep" in line for line in handle.logs()))
    if how == "by srf":
        handle.cancel()
    else:
        state = {"state": {"type": "CANCELLING"}, "force": True}
        api.post(f"/flow_runs/{handle.run_id}/set_state", state)
    with pytest.raises(Cancelled):
        handle.result(180)
    see_ends(api, handle.run_id, ("execute_call", "CANCELLED"))


def test_two_nodes_are_in_the_name(work):
    assert work.triple.with_options(cluster="curnagl", nodes=2).flow_run_name == "triple on curnagl, 2 nodes"


def test_a_deployment_has_the_tags_that_its_runs_are_looked_for_by(work):
    deployment = work.triple.to_deployment("nightly", tags=["mine"])
    assert {"slurm-ray-flow", "triple", "local", "local-machine", "mine"} == set(deployment.tags)


def test_of_many_calls_the_first_one_shows_what_all_have_in_common(work, api):
    handles = work.triple.map([1, 2, 3], max_parallel=3)
    assert [handle.result(180) for handle in handles] == [3, 6, 9]

    def shown():
        return [artifacts(api, handle.run_id).keys() for handle in handles]

    wait_for(lambda: all("run" in keys for keys in shown()) and any("files" in keys for keys in shown()))
    assert sum("files" in keys for keys in shown()) == 1
