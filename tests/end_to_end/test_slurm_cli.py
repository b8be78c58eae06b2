"""`srf init` and `srf clusters` for a cluster that Slurm gives out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from hosts.lab import Lab
from slurm_ray_flow import SlurmCluster
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.deployments.profiles import FIELDS
from srf_command import Command

pytestmark = pytest.mark.server


@pytest.fixture
def name() -> str:
    return f"slurm-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def saved(server: Any) -> Callable[[str], SlurmCluster]:
    def load(name: str) -> SlurmCluster:
        with connected(server):
            return SlurmCluster.load(name)  # type: ignore[return-value]

    return load


def test_a_slurm_cluster_is_saved_and_changed(srf: Command, saved: Callable[[str], SlurmCluster], name: str) -> None:
    modules = ["--modules", "gcc", "--modules", "python/3.11"]
    options = [*modules, "--sbatch-options=--mail-type=END", "--account", "physics"]
    done = srf("init", name, "--slurm", "--host", "there", "--partition", "cpu", *options)
    assert done.returncode == 0, done.stderr
    assert srf("init", name, "--partition", "gpu", "--user", "alice", "--change").returncode == 0
    found = saved(name)
    assert (found.partition, found.account, found.modules) == ("gpu", "physics", ["gcc", "python/3.11"])
    assert found.sbatch_options == ["--mail-type=END"]
    assert found.connection is not None
    assert (found.connection.host, found.connection.user) == ("there", "alice")
    assert name in srf("clusters").stdout
    assert srf("init", name, "--modules", "", "--account", "", "--change").returncode == 0
    found = saved(name)
    assert (found.partition, found.account, found.modules) == ("gpu", "", [])


def test_a_profile_has_the_fields_of_the_block_and_its_host() -> None:
    assert set(FIELDS) <= {*SlurmCluster.model_fields, "host"}


def test_a_profile_gives_what_is_left_out(srf: Command, saved: Callable[[str], SlurmCluster], name: str) -> None:
    assert srf("init", name, "--profile", "curnagl", "--user", "alice", "--partition", "gpu").returncode == 0
    found = saved(name)
    assert found.connection is not None
    assert (found.connection.host, found.partition) == ("curnagl.dcsr.unil.ch", "gpu")


def test_a_login_node_needs_no_connection(srf: Command, saved: Callable[[str], SlurmCluster], name: str) -> None:
    assert json.loads(srf("init", name, "--slurm", "--here", "--json").stdout) == {
        "name": name,
        "kind": "slurm-cluster",
    }
    assert saved(name).connection is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--slurm", "--host", "there", "--slots", "2"], "has no slots"),
        (["--profile", "atlantis"], "there is no profile 'atlantis'"),
        (["--here", "--user", "alice"], "--here means this machine"),
    ],
)
def test_what_can_not_be_meant_is_refused(server: Any, srf: Command, name: str, options: list[str], said: str) -> None:
    done = srf("init", name, *options)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_two_kinds_of_cluster_do_not_share_a_name(server: Any, srf: Command, name: str) -> None:
    assert srf("init", name, "--host", "there").returncode == 0
    done = srf("init", name, "--slurm", "--host", "there", "--overwrite")
    assert (done.returncode, "of the kind SSH Server" in done.stderr) == (2, True), done.stderr
    assert "has no partitions" in srf("clusters", name).stderr


def test_a_real_cluster_is_shown_and_checked(server: Any, srf: Command, slurm_lab: Lab, name: str) -> None:
    login = ["--user", "alice", "--key-file", str(slurm_lab.key("alice")), "--known-hosts", str(slurm_lab.known_hosts)]
    assert srf("init", name, "--slurm", "--host", slurm_lab["login"].address, *login).returncode == 0
    done = srf("clusters", name)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(lines) == ["PARTITION", "cpu", "short", "gpu", "closed", "spare"]
    assert "1 h 0 min" in lines["cpu"]
    assert "2 fake" in lines["cpu"]
    assert "default" in lines["cpu"]
    assert "down" in lines["closed"]
    values = json.loads(srf("clusters", name, "--json").stdout)
    assert [one["name"] for one in values["partitions"]] == ["cpu", "short", "gpu", "closed", "spare"]
    checked = srf("check", name)
    assert checked.returncode == 0, checked.stdout
    assert "5 partitions; jobs go to cpu, the default" in checked.stdout
    assert srf("init", name, "--partition", "closed", "--change").returncode == 0
    refused = srf("check", name)
    assert (refused.returncode, "starts no jobs now" in refused.stdout) == (1, True), refused.stdout
