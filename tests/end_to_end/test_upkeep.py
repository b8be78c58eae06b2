"""Clean-up and check as flows with artifacts, and the verbs around a saved server, against the session's server."""

import json
import os
import time

import pytest

pytestmark = pytest.mark.server

DAY = 86400.0


def artifact(api, key):
    wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    return api.post("/artifacts/filter", wanted)[0]


@pytest.fixture
def lab(server, tmp_path):
    """A saved cluster on this machine, with an old run in it."""
    from slurm_ray_flow import LocalMachine
    from slurm_ray_flow.blocks.server import connected

    run = tmp_path / "lab" / "runs" / "old"
    run.mkdir(parents=True)
    (run / "log.txt").write_bytes(b"x" * 100_000)
    for path in (run / "log.txt", run):
        os.utime(path, (time.time() - 60 * DAY,) * 2)
    with connected(server):
        LocalMachine(root=tmp_path / "lab").save("upkeep-lab", overwrite=True)
        yield run


@pytest.fixture
def dead(server):
    """A saved server that nobody answers for."""
    from slurm_ray_flow import SshConnection, SshServer
    from slurm_ray_flow.blocks.server import connected

    connection = SshConnection(host="127.0.0.1", port=9, connect_timeout=1, reconnect_within=1)
    with connected(server):
        SshServer(connection=connection).save("upkeep-dead", overwrite=True)
        yield
        SshServer.delete("upkeep-dead")


def test_a_clean_up_leaves_an_artifact_with_what_it_freed(lab, api):
    from slurm_ray_flow.flows.cleanup import cleanup

    (report,) = cleanup("upkeep-lab", dry_run=True)
    assert lab.exists()
    (report,) = cleanup("upkeep-lab")
    assert not lab.exists()
    found = artifact(api, "cleanup-upkeep-lab")
    rows = json.loads(found["data"])
    assert [row["kind"] for row in rows if row["what"] == "runs/old"] == ["run"]
    assert report.bytes >= 100_000
    assert found["description"] == report.total


def test_one_cluster_that_does_not_answer_holds_up_no_other(lab, api, dead):
    from slurm_ray_flow import SlurmRayFlowError
    from slurm_ray_flow.flows.cleanup import cleanup

    with pytest.raises(SlurmRayFlowError, match="upkeep-dead could not be cleaned up"):
        cleanup()
    assert not lab.exists()
    assert "can't be reached" in artifact(api, "cleanup-upkeep-dead")["description"]


def test_a_check_leaves_an_artifact(lab, api):
    from slurm_ray_flow.flows.check import check

    findings = check("upkeep-lab")
    rows = json.loads(artifact(api, "check-upkeep-lab")["data"])
    assert [row["name"] for row in rows] == [finding.name for finding in findings]
    assert {"python", "disk", "rsync", "clock"} <= {row["name"] for row in rows}


def test_clean_says_what_would_go_and_then_removes_it(lab, srf):
    told = srf("clean", "upkeep-lab", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "runs/old" in told.stdout and lab.exists()
    done = json.loads(srf("clean", "upkeep-lab", "--older-than", "7d", "--json").stdout)
    assert "runs/old" in [thing["name"] for thing in done["things"]] and not lab.exists()
    assert srf("clean", "upkeep-lab", "--older-than", "3h").returncode == 2


def test_a_kept_run_and_its_record_go_by_hand_alone(work, srf):
    from slurm_ray_flow.blocks import store

    handle = work.triple.with_options(keep=True).submit(2)
    assert handle.result(timeout=180) == 6
    folder = store.home() / "runs" / handle.run_id
    record = store.record_path(handle.run_id)
    for path in [*folder.rglob("*"), folder, record]:
        os.utime(path, (time.time() - 60 * DAY,) * 2)
    srf("clean")
    assert folder.exists() and record.exists()
    done = srf("clean", "--run", handle.run_id[:8])
    assert done.returncode == 0, done.stderr
    assert not folder.exists() and not record.exists()


def test_a_run_that_lives_is_not_removed(work, tmp_path, srf):
    from support import wait_for

    mark = tmp_path / "pid"
    handle = work.sleep.submit(60, str(mark))
    wait_for(mark.exists)
    refused = srf("clean", "--run", handle.run_id)
    assert refused.returncode != 0 and "lives" in refused.stderr
    assert handle.status().value == "running"
    handle.cancel()


def test_a_server_is_saved_listed_and_replaced(server, srf):
    given = ("--host", "desi.example.org", "--user", "alice", "--slots", "2", "--proxy-jump", "a@b:22,c")
    saved = srf("init", "upkeep-desi", *given, "--password-from-env", "THE_WORD", THE_WORD="sesame-73")
    assert saved.returncode == 0, saved.stderr
    assert "srf check upkeep-desi" in saved.stdout and "sesame" not in saved.stdout + saved.stderr
    listed = {one["name"]: one for one in json.loads(srf("clusters", "--json").stdout)}
    saved = {"name": "upkeep-desi", "kind": "ssh-server", "host": "desi.example.org"}
    assert listed["upkeep-desi"].items() >= saved.items()
    assert listed["local"]["kind"] == "local-machine"

    again = srf("init", "upkeep-desi", "--host", "other")
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert srf("init", "upkeep-desi", "--host", "other", "--overwrite").returncode == 0
    listed = {one["name"]: one for one in json.loads(srf("clusters", "--json").stdout)}
    assert listed["upkeep-desi"]["host"] == "other"


def test_what_init_saves_is_what_functions_find(server, srf):
    from slurm_ray_flow.blocks.clusters import find_cluster
    from slurm_ray_flow.blocks.server import connected

    given = (
        "--host",
        "two",
        "--user",
        "bob",
        "--lock-path",
        "",
        "--gpus",
        "3",
        "--retention-days",
        "7",
        "--key-file",
        "/k/id",
    )
    assert srf("init", "upkeep-two", *given, "--password-from-env", "THE_WORD", THE_WORD="sesame-74").returncode == 0
    with connected(server):
        found = find_cluster("upkeep-two")
    assert (found.connection.host, found.connection.user, str(found.connection.key_file)) == (
        "two",
        "bob",
        "/k/id",
    )
    assert (found.lock, found.gpus, found.retention_days) == (None, 3, 7.0)
    assert found.connection.password.get_secret_value() == "sesame-74"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("local", "--host", "x"), "another name"),
        (("Upper Case", "--host", "x"), "lower-case"),
        (("x", "--host", "x", "--slots", "0"), "slots"),
        (("no-such-host", "--slots", "2"), "--host HOST"),
        (("x", "--host", ""), "host"),
        (("x", "--password"), "--password-from-env"),
        (("x", "--password-from-env", "NOT_THERE"), "NOT_THERE"),
    ],
)
def test_a_wrong_init_says_what_to_write_and_saves_nothing(server, srf, arguments, hint):
    from slurm_ray_flow.blocks.clusters import saved_clusters
    from slurm_ray_flow.blocks.server import connected

    with connected(server):
        before = saved_clusters()
        done = srf("init", *arguments)
        assert saved_clusters() == before
    assert done.returncode == 2
    assert hint in done.stderr and "Traceback" not in done.stderr


def test_check_of_what_can_not_be_reached_is_1_and_says_why(server, srf, dead):
    done = srf("check", "upkeep-dead", "--json")
    assert done.returncode == 1
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert found["log-in"]["state"] == "failed" and found["log-in"]["advice"]
    assert found["disk"]["state"] == "not known"


def test_a_cluster_without_a_lock_has_no_queue(server, srf):
    done = srf("queue", "local")
    assert done.returncode == 2
    assert "has no lock" in done.stderr and "srf clusters" in done.stderr


def test_for_the_queue_of_a_slurm_cluster_one_is_sent_to_the_runs(server, srf):
    assert srf("init", "upkeep-slurm", "--slurm", "--here").returncode == 0
    done = srf("queue", "upkeep-slurm")
    srf("forget", "upkeep-slurm")
    assert done.returncode == 2
    assert "srf runs" in done.stderr and "lock_path" not in done.stderr
