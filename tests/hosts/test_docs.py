"""What the documents promise of a server, tried on one: their examples for it, and what a new user meets first."""

import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import prepared
from followed import Page
from slurm_ray_flow import SlurmCluster
from slurm_ray_flow.blocks.server import connected, ensure_server

TOP = Path(__file__).parents[2]
DOCUMENTS = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]
pytestmark = pytest.mark.server


def examples():
    for document in DOCUMENTS:
        found = re.findall(r"^```python desi\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{document.name}-{number}")


def without_a_terminal(*words):
    """The command in a session of its own."""
    return prepared.run([prepared.SRF, *words], stdin=subprocess.DEVNULL, start_new_session=True)


@pytest.fixture(scope="module")
def desi(hosts_lab, srf):
    """The server's address; it is saved as the documents call it."""
    ensure_server(print)
    address = hosts_lab["desi"].address
    files = ["--key-file", str(hosts_lab.key("alice")), "--known-hosts", str(hosts_lab.known_hosts)]
    done = srf("init", "desi", "--host", address, "--user", "alice", *files, "--overwrite")
    assert done.returncode == 0, done.stderr
    return address


def here(lab, host, known_hosts):
    """Makes of a command on a page what it is in this lab."""

    def changed(words):
        if words[:2] == ["srf", "init"]:
            there = [lab[host].address if word.endswith(".example.org") else word for word in words]
            key = ["--key-file", str(lab.key("alice"))]
            return [*there, *key, "--known-hosts", str(known_hosts), "--overwrite"]
        return [*words, "--yes"] if words[:2] == ["srf", "trust"] else words  # nobody can be asked

    return changed


def follow(page, folder, changed):
    written = page.follow(folder, changed)
    assert len(page.commands) == 3
    assert page.values
    assert set(page.values) <= set(written.splitlines())
    return written


def test_the_quick_start_on_a_shared_server(hosts_lab, server, tmp_path):
    follow(Page("start/desi.md"), tmp_path, here(hosts_lab, "desi", tmp_path / "known_hosts"))


@pytest.mark.ray
def test_the_quick_start_on_a_slurm_cluster(slurm_lab, server, tmp_path):
    try:
        written = follow(Page("start/slurm.md"), tmp_path, here(slurm_lab, "login", tmp_path / "known_hosts"))
    finally:
        with connected(server):
            SlurmCluster.delete("curnagl")
    assert "nodes: c1 c2" in written


@pytest.mark.parametrize("text", list(examples()))
def test_an_example_runs_on_the_server(desi, tmp_path, text):
    (tmp_path / "script.py").write_text(text)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = prepared.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = re.findall(r"^    print\(.*\)  # (.+)$", text, re.MULTILINE)
    assert values
    assert set(values) <= set(done.stdout.splitlines())


def test_the_tasks_of_a_prefect_flow_run_on_two_nodes(jobs, tmp_path):
    """Prefect is on no node. The second node is wanted for what the first one has no CPUs for, from the start on."""
    page = (TOP / "docs" / "prefect-tasks.md").read_text()
    [text] = re.findall(r"^```python curnagl\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    text = (
        text.replace('"curnagl"', repr(jobs.name))
        .replace("cpus_per_node=16", "cpus_per_node=4")
        .replace('"10m"', '"5s"')
    )
    text, main = text.split("if __name__", 1)
    folder = jobs.folder()
    meeting = f"""
@task
def meet(number):
    import os, pathlib, sys, time
    here = pathlib.Path({folder!r}, os.uname().nodename)
    here.touch()
    while len(list(here.parent.iterdir())) < 2:
        time.sleep(0.1)
    return os.uname().nodename, "prefect" in sys.modules


@flow(name="matrices", task_runner=matrices.task_runner)
def both():
    print(sorted(set(meet.map(range(8)).result())))


if __name__{main}        both()
"""
    (tmp_path / "script.py").write_text(text + meeting)
    done = prepared.run([sys.executable, str(tmp_path / "script.py")], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"16155605", "[('c1', False), ('c2', False)]"} <= set(done.stdout.splitlines()), done.stdout
    jobs.over()


def test_a_host_key_is_trusted_by_its_fingerprint_alone(desi, srf, tmp_path):
    name, file = f"desi-{uuid.uuid4().hex[:8]}", tmp_path / "known_hosts"
    assert srf("init", name, "--host", desi, "--user", "alice", "--known-hosts", str(file)).returncode == 0
    asked = without_a_terminal("trust", name)
    assert asked.returncode == 2
    assert "--fingerprint" in asked.stderr
    shown = re.search(r"SHA256:\S+", asked.stdout)[0]
    other = srf("trust", name, "--yes", "--fingerprint", "SHA256:of-another-key")
    assert other.returncode == 1
    assert "Nothing was written" in other.stderr
    assert not file.exists()
    assert srf("trust", name, "--fingerprint", shown).returncode == 0
    assert "was known already" in srf("trust", name).stdout


def test_who_can_not_log_in_reads_which_variable_may_hold_the_password(desi, hosts_lab, srf):
    name = f"desi-{uuid.uuid4().hex[:8]}"
    variable = name.upper().replace("-", "_") + "_PASSWORD"
    known = str(hosts_lab.known_hosts)
    assert srf("init", name, "--host", desi, "--user", "bob", "--known-hosts", known).returncode == 0
    nobody = without_a_terminal("check", name)
    assert nobody.returncode == 1
    assert f"${variable}" in nobody.stdout
    wrong = srf("check", name, **{variable: "wrong"})
    assert "was not taken" in wrong.stdout
    assert srf("check", name, **{variable: hosts_lab.password("bob")}).returncode == 0
