"""What is news about a cluster, between two looks at it."""

import json

import pytest

from slurm_ray_flow.blocks.server.sweep import settle_run
from slurm_ray_flow.core.cluster_report import AGAIN_SECONDS, CheckResult, ClusterReport, Health, looked
from slurm_ray_flow.core.errors import ConnectionFailed, LogInFailed
from slurm_ray_flow.core.prefect_events import CLUSTER_DOWN, CLUSTER_UP, RUN_FAILED, WARM_IDLE, run_failed
from slurm_ray_flow.core.run import CallEnd, RunRecord
from slurm_ray_flow.core.run_state import RunFacts
from slurm_ray_flow.core.warm import Warm

NOW = 1_800_000_000.0


def look(before, why="", refused=False, idle=(), now=NOW, idle_seconds=600.0):
    error = (LogInFailed if refused else ConnectionFailed)(why, advice="try") if why else None
    after, news = looked(before, ClusterReport("desi", error, idle=idle), idle_seconds, now)
    assert Health.from_json(after.to_json()) == after
    return after, [notice.event for notice in news]


def idling(seconds):
    return Warm("run", None, {"time": NOW - seconds, "cpus": 4}, ())


def test_a_cluster_that_goes_down_and_comes_up_is_told_once_each():
    well, news = look(Health())
    assert (news, well.since) == ([], NOW)
    down, news = look(well, "no route", now=NOW + 60)
    assert (news, down.since) == ([CLUSTER_DOWN], NOW + 60)
    still, news = look(down, "refused", now=NOW + 120)
    assert (news, still.since) == ([], NOW + 60)
    up, notices = looked(still, ClusterReport("desi"), 600.0, NOW + 180)
    assert [(one.event, one.payload["down_seconds"]) for one in notices] == [(CLUSTER_UP, 120)]
    assert up.since == NOW + 180


def test_one_that_was_never_seen_well_is_told():
    assert look(Health(), "no route")[1] == [CLUSTER_DOWN]


def test_one_whose_scheduler_takes_no_job_is_down():
    findings = [CheckResult("disk", "warning", "1 GiB free"), CheckResult("slurm", "failed", "no such partition", "x")]
    health, [notice] = looked(Health(), ClusterReport("desi", findings=findings), 600.0, NOW)
    assert (health.why, notice.payload["advice"]) == ("no such partition", "x")


@pytest.mark.parametrize(
    ("report", "state"),
    [
        (ClusterReport("desi"), "up"),
        (ClusterReport("desi", ConnectionFailed("no route")), "away"),
        (ClusterReport("desi", LogInFailed("a code")), "locked"),
    ],
)
def test_what_was_not_asked_is_null_for_scripts(report, state):
    said = json.loads(json.dumps(report.to_json()))
    assert said.pop("state") == state
    assert said.pop("why") == report.why
    assert set(map(repr, said.values())) == {"None", "''", "[]"}


def test_one_that_lets_us_not_in_is_left_alone_for_a_while():
    assert look(Health(), "no log-in", refused=True)[0].again == NOW + AGAIN_SECONDS
    assert look(Health(), "no route")[0].again == 0


def test_each_time_of_idling_is_told_once_and_only_when_it_is_long():
    health, news = look(Health(), idle=[idling(100)])
    assert news == []
    health, news = look(health, idle=[idling(100)], now=NOW + 500)
    assert news == [WARM_IDLE]
    health, news = look(health, idle=[idling(100)], now=NOW + 1000)
    assert news == []
    health, news = look(health, idle=[idling(-50)], now=NOW + 1000)
    assert news == [WARM_IDLE], "after another call it idles anew"
    assert look(health)[0].told == ()


def test_what_is_remembered_in_another_form_counts_as_nothing():
    assert Health.from_json(None) == Health.from_json(["x"]) == Health.from_json({"why": 1}) == Health()


def test_a_failure_names_its_cause_its_run_and_its_cluster():
    record = RunRecord("id", "flow", "ssh-server/desi", "ssh-server", "/r", "id", "id", "train", 1, 1, "")
    notice = run_failed(record, "out_of_memory", "took 9 GiB")
    body = notice.body()
    assert (body["event"], body["payload"]["cause"], body["payload"]["cluster"]) == (
        RUN_FAILED,
        "out_of_memory",
        "desi",
    )
    assert {one["prefect.resource.id"] for one in body["related"]} == {
        "slurm-ray-flow.cluster.desi",
        "prefect.flow-run.flow",
    }


class FakeApi:
    """A fake of Prefect's API that notes what it is told; the flow run's process was killed in one step."""

    def __init__(self):
        self.told = []

    def post(self, path, body):
        self.told.append((path, body))
        return [{"id": "step"}] if path == "/task_runs/filter" else {}


def test_a_run_that_failed_after_its_launch_had_gone_is_told_too():
    api = FakeApi()
    record = RunRecord("id", "flow", "desi", "ssh-server", "/r", "id", "id", "train", 1, None, None, created=1.0)
    failed = RunFacts(record, call_end=CallEnd(None, "out_of_memory", "took 9 GiB"))
    flow_run = {"id": "flow", "state_type": "RUNNING", "tags": []}
    assert list(settle_run(api, flow_run, failed, lambda: None))
    [(_, [event])] = [request for request in api.told if request[0] == "/events"]
    assert (event["event"], event["payload"]["cause"], event["payload"]["message"]) == (
        RUN_FAILED,
        "out_of_memory",
        "took 9 GiB",
    )
    api.told.clear()
    assert list(settle_run(api, flow_run, RunFacts(record, call_end=CallEnd("value")), lambda: None))
    ended = [path for path, _ in api.told if path.endswith("/set_state")]
    assert ended == ["/flow_runs/flow/set_state", "/task_runs/step/set_state"]
    assert not [path for path, _ in api.told if path == "/events"]
