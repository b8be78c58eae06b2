"""Check and clean-up over real SSH: what a server lacks is named, and nothing that is not ours is touched."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hosts import faults
from hosts.lab import Lab
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.core.cluster_report import CheckResult
from slurm_ray_flow.tasks.clean_up import cleaned_up
from slurm_ray_flow.tasks.cluster_report import report

HELD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def server(lab: Lab, host: str = "desi", user: str = "alice", root: str = "", **fields: Any) -> Iterator[SshServer]:
    connection = SshConnection(host=host, user=user, key_file=lab.key(user), config_file=lab.ssh_config)
    made = SshServer(connection=connection, root=root or f"~/upkeep-{secrets.token_hex(4)}", **fields)
    made.agent.connection.close()
    try:
        yield made
    finally:
        made.agent.connection.close()


def found(cluster: SshServer) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in report(cluster, "findings").findings}


def test_a_server_that_is_well_is_checked_over_one_connection_in_few_questions(hosts_lab: Lab) -> None:
    with server(hosts_lab) as desi:
        connection = desi.agent.connection
        made, asked = connection.times_connected, connection.round_trips
        findings = found(desi)
        assert {name: one.found for name, one in findings.items() if one.state == "failed"} == {}
        assert (findings["host key"].state, findings["log-in"].state, findings["lock"].state) == ("ok", "ok", "ok")
        assert "alice on desi" in findings["account"].found
        assert (connection.times_connected - made, connection.round_trips - asked <= 3) == (1, True)


def test_a_server_without_a_way_to_the_registry_is_told_to_upload(hosts_lab: Lab) -> None:
    with server(hosts_lab, "offline") as offline:
        finding = found(offline)["registry"]
        assert finding.state == "warning" and 'wheels="upload"' in finding.advice


def test_a_full_disk_and_few_inodes_are_found(hosts_lab: Lab) -> None:
    desi, root = hosts_lab["desi"], "/home/alice/upkeep-small"
    with faults.small_disk(desi, "alice", root, size="1M"), server(hosts_lab, root=root) as cluster:
        assert found(cluster)["disk"].state == "failed"
    with faults.small_disk(desi, "alice", root, size="9G", inodes=500), server(hosts_lab, root=root) as cluster:
        assert found(cluster)["disk"].state == "failed"


def test_a_clock_that_is_wrong_is_found(hosts_lab: Lab) -> None:
    with faults.clock(hosts_lab["desi"], 3600), server(hosts_lab) as cluster:
        finding = found(cluster)["clock"]
    assert finding.state == "warning" and "ahead" in finding.found


def test_another_host_key_is_found_and_nothing_else_is_claimed(hosts_lab: Lab) -> None:
    with faults.other_host_key(hosts_lab["offline"]), server(hosts_lab, "offline") as cluster:
        cluster_findings = report(cluster, "findings").findings
    states = [(one.name, one.state) for one in cluster_findings[:2]]
    assert states == [("host key", "failed"), ("log-in", "not known")]
    assert {one.state for one in cluster_findings[2:]} == {"not known"}


def test_who_holds_the_lock_is_named(hosts_lab: Lab) -> None:
    desi, path = hosts_lab["desi"], f"/tmp/upkeep-{secrets.token_hex(4)}.lock"
    with server(hosts_lab, lock_path=path) as cluster:
        desi.run("frank", ["sh", "-c", f"umask 0; : > {path}; chmod 666 {path}"])
        desi.run("frank", ["sh", "-c", f"(sleep 20 | python3.11 -c '{HELD}' {path}) >/dev/null 2>&1 &"])
        _until(lambda: bool(cluster.ask("queue.state", path=path)["holders"]))
        assert "held by frank" in found(cluster)["lock"].found


def test_a_lock_that_can_not_be_written_says_what_its_owner_can_do(hosts_lab: Lab) -> None:
    desi, path = hosts_lab["desi"], f"/tmp/upkeep-{secrets.token_hex(4)}.lock"
    desi.run("frank", ["sh", "-c", f"umask 022; : > {path}"])
    with server(hosts_lab, lock_path=path) as cluster:
        finding = found(cluster)["lock"]
    assert finding.state == "failed" and finding.advice


def test_old_things_go_from_a_server_and_what_is_not_ours_stays(hosts_lab: Lab) -> None:
    desi = hosts_lab["desi"]
    root = f"/home/alice/upkeep-{secrets.token_hex(4)}"
    desi.run(
        "alice",
        ["mkdir", "-p", f"{root}/runs/old", f"{root}/runs/theirs", f"{root}/runs/young", "/home/alice/precious"],
    )
    desi.run(
        "alice",
        ["sh", "-c", f"for run in old theirs young; do head -c 100000 /dev/zero > {root}/runs/$run/log.txt; done"],
    )
    desi.run("alice", ["ln", "-s", "/home/alice/precious", f"{root}/runs/old/link"])
    desi.run("alice", ["ln", "-s", "/home/alice/precious", f"{root}/environments"])
    desi.run("alice", ["mkdir", "-p", "/home/alice/precious/0123"])
    desi.run("root", ["chown", "bob", f"{root}/runs/theirs/log.txt"])
    old = [
        "find",
        f"{root}/runs/old",
        f"{root}/runs/theirs",
        "/home/alice/precious",
        "-exec",
        "touch",
        "-h",
        "-d",
        "90 days ago",
    ]
    desi.run("root", [*old, "{}", "+"])
    with server(hosts_lab, root=root) as cluster:
        told = cleaned_up(cluster, dry_run=True)
        assert [thing.name for thing in told.things if thing.kind == "run"] == ["runs/old"]
        assert desi.path(f"{root}/runs/old/log.txt").exists()
        done = cleaned_up(cluster)
    assert done.things == told.things and done.bytes >= 100_000
    assert sorted(path.name for path in desi.path(f"{root}/runs").iterdir()) == ["theirs", "young"]
    assert desi.path("/home/alice/precious/0123").is_dir()
    assert any("another user" in text for text in done.stayed)


def _until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen within {seconds} s")
        time.sleep(0.1)
