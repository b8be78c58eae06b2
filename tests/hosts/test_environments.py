"""Environments on hosts that are reached by SSH alone, as a user without rights: real uv, a real package index."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import PurePosixPath

import pytest

from hosts import faults
from hosts.launcher import lay_uv
from slurm_ray_flow import EnvironmentFailed, SshConnection, SshServer
from slurm_ray_flow.blocks import environments
from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.remote.environment import installation
from support import SLOW_BACKEND, make_wheel, wait_for

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class Place:
    """A root folder of a user on a host."""

    def __init__(self, lab, host, user="frank"):
        self.lab, self.host, self.user = lab, lab[host], user
        self.root = PurePosixPath(f"/home/{user}/environments-{secrets.token_hex(4)}")

    def give_uv(self):
        """As a user has it who works with it."""
        return lay_uv(self.host, self.user, f"/home/{self.user}/.local/bin")

    def server(self, **fields):
        key = {"key_file": self.lab.key(self.user), "config_file": self.lab.ssh_config}
        connection = SshConnection(host=self.host.name, user=self.user, **key)
        return SshServer(connection=connection, root=str(self.root), **fields)

    def build(self, *requirements, digest="d1", server=None, policy="", wheels="index", **changes):
        server = server or self.server()
        fields = {"constraints": [], "options": [], "version": VERSION, "requirements": list(requirements)}
        spec = {"root": str(server.root_folder), "digest": digest, **fields, **changes}
        send = server.agent.copy_folder
        environments.build(server, spec, send=send, policy=policy, wheels=wheels)
        return self.environment(digest)

    def environment(self, digest="d1"):
        return self.root / "environments" / digest

    def seen(self, path=""):
        return self.host.path(self.root / path)

    def run(self, environment, code):
        return self.host.run(self.user, [str(environment / "bin" / "python"), "-I", "-c", code]).stdout.strip()


@pytest.fixture(scope="module")
def frank_has_uv(hosts_lab):
    program = Place(hosts_lab, "desi").give_uv()
    yield
    program.unlink()


@pytest.fixture
def desi(hosts_lab, frank_has_uv):
    return Place(hosts_lab, "desi")


@pytest.fixture
def offline(hosts_lab):
    return Place(hosts_lab, "offline")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Wheelhouses of its own."""
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))


def test_from_the_index_and_one_package_more_takes_the_rest_by_links(desi):
    first = desi.build("six==1.16.0", "toml==0.10.2")
    assert desi.run(first, "import six, toml; print(six.__version__)") == "1.16.0"
    began = time.monotonic()
    desi.build("six==1.16.0", "toml==0.10.2", "idna==3.10", digest="d2")
    assert time.monotonic() - began < 30
    (file,) = desi.seen("environments/d2").glob("lib/python*/site-packages/six.py")
    (other,) = desi.seen("environments/d1").glob("lib/python*/site-packages/six.py")
    assert file.stat().st_ino == other.stat().st_ino
    assert desi.seen("environments").stat().st_mode & 0o777 == 0o700


def test_what_is_there_costs_one_short_question(desi):
    server = desi.server()
    desi.build("six==1.16.0", server=server)
    took = []
    for _ in range(5):
        began = time.monotonic()
        (held,) = server.environments()
        took.append(time.monotonic() - began)
    assert min(took) < 0.2
    assert held.packages == {"six": "1.16.0"}


def test_uv_is_put_there_once(hosts_lab):
    desi, version = Place(hosts_lab, "desi", "alice"), environments.UV_VERSION
    server = desi.server()
    asked = {"root": str(desi.root), "version": version}
    assert server.ask("uv_tool.located", **asked)["uv"] == ""
    place = server.ask("uv_tool.provide", **asked)["uv"]
    assert place == str(desi.root / "tools" / "uv" / version / "uv")
    before = desi.host.path(place).stat()  # but for when it was read
    assert server.ask("uv_tool.provide", **asked)["uv"] == place
    after = desi.host.path(place).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in desi.host.path(place).parent.iterdir()] == ["uv"]


def test_two_agents_build_once(desi, tmp_path):
    """A package whose build takes as long as the test wants, in two launches over a connection each."""
    source = desi.root.parent / f"slow-{secrets.token_hex(4)}"
    inside = desi.host.path(source)
    control = desi.host.path(source.parent) / f"{source.name}.control"
    for folder in (inside, control):
        folder.mkdir()
        os.chown(folder, *_owner(desi))
    (inside / "backend.py").write_text(SLOW_BACKEND.format(control=str(source) + ".control"))
    (inside / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1.0"\n'
    )
    uv = desi.server().ask("uv_tool.provide", root=str(desi.root), version=environments.UV_VERSION)["uv"]
    spec = {
        "root": str(desi.root), "digest": "d1", "uv": uv, "python": f"python{VERSION}", "version": VERSION,
        "requirements": [f"slow @ file://{source}"], "constraints": [], "options": [],
    }  # fmt: skip
    told, results, agents = [], [], []

    def ask():
        connection = SshConnection(
            host="desi", user="frank", key_file=desi.lab.key("frank"), config_file=desi.lab.ssh_config
        )
        agents.append(connection.agent(root=str(desi.root)))
        results.append(agents[-1].ask_all([("environments.build", {"spec": spec})], told.append)[0])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: (control / "builds").exists() and any(event["event"] == "waiting" for event in told))
    (control / "go").touch()
    for thread in threads:
        thread.join(60)
    for agent in agents:
        agent.close()
    assert sorted(result["built"] for result in results) == [False, True]
    assert len((control / "builds").read_text().split()) == 1


def _owner(place):
    home = place.host.path(place.root.parent).stat()
    return home.st_uid, home.st_gid


def test_a_build_ends_with_the_agent_that_asked_for_it(desi, tmp_path):
    server = desi.server()
    source = desi.root.parent / f"stuck-{secrets.token_hex(4)}"
    inside = desi.host.path(source)
    inside.mkdir()
    (inside / "backend.py").write_text("import time\ndef build_wheel(*_, **__):\n    time.sleep(600)\n")
    (inside / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "stuck"\nversion = "1.0"\n'
    )
    for path in (inside, *inside.iterdir()):
        os.chown(path, *_owner(desi))
    uv = server.ask("uv_tool.provide", root=str(desi.root), version=environments.UV_VERSION)["uv"]
    spec = json.dumps({
        "root": str(desi.root), "digest": "d1", "uv": uv, "python": f"python{VERSION}", "version": VERSION,
        "requirements": [f"stuck @ file://{source}"], "constraints": [], "options": [],
    })  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(server.agent.tools)!r})\n"
        "from slurm_ray_flow.remote.agent.operations import perform\n"
        f"import json; perform('environments.build', {{'spec': json.loads({spec!r})}})"
    )
    asker = _start(desi, ["python3", "-I", "-c", code], tmp_path / "said")
    wait_for(lambda: asker.poll() is not None or _backends(desi))
    assert asker.poll() is None, (tmp_path / "said").read_text()
    inner = [pid for pid, argv in desi.host.processes().items() if code in argv]
    for pid in inner:
        os.kill(pid, 9)
    asker.wait(180)
    wait_for(lambda: not _backends(desi) and not _builders(desi))
    assert [path.name for path in desi.seen("environments").glob(".*/")] == []


def _start(place, argv, said):
    whole = ["nsenter", "-t", str(place.host.pid), "-m", "-u", "-i", "-n", "-p", "--"]
    become = ["setpriv", "--reuid=frank", "--regid=frank", "--init-groups", "--reset-env"]
    with open(said, "wb") as output:
        return subprocess.Popen([*whole, *become, *argv], stdout=output, stderr=subprocess.STDOUT)


def _backends(place):
    return [argv for argv in place.host.processes().values() if any("build_wheel" in part for part in argv)]


def _builders(place):
    processes = place.host.processes().values()
    return [argv for argv in processes if any(part.endswith("/builder.py") for part in argv) and "-" in argv]


def test_no_index_is_said_with_what_helps(offline):
    server = offline.server()
    with pytest.raises(EnvironmentFailed) as caught:
        offline.build("six==1.16.0", server=server)
    assert 'wheels="upload"' in str(caught.value)


def test_uploaded_wheels_need_no_index(offline):
    names = ["six==1.16.0", "numpy", f"dill=={importlib.metadata.version('dill')}"]
    environment = offline.build(*names, wheels="upload")
    assert offline.run(environment, "import numpy, six; print(int(numpy.arange(5).sum()))") == "10"
    before = {path.name for path in offline.seen("wheelhouses").glob("*/*")}
    offline.build(*names, "toml==0.10.2", wheels="upload", digest="d2")
    added = {path.name for path in offline.seen("wheelhouses").glob("*/*")} - before
    assert added == {"toml-0.10.2-py2.py3-none-any.whl"}


def local_package(folder, name="mine", code="VALUE = 7\n", backend="hatchling.build"):
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["{backend.partition(".")[0]}"]\nbuild-backend = "{backend}"\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\ndependencies = ["six"]\n'
    )
    return f"{name} @ {folder.as_uri()}"


@pytest.mark.parametrize(("wheels", "backend"), [("index", "setuptools.build_meta"), ("upload", "hatchling.build")])
def test_a_local_package_travels_as_a_wheel_and_is_left_as_it_was(desi, tmp_path, wheels, backend):
    environment = desi.build(local_package(tmp_path / "package", backend=backend), wheels=wheels)
    assert desi.run(environment, "import mine, six; print(mine.VALUE)") == "7"
    assert sorted(path.name for path in (tmp_path / "package").iterdir()) == ["mine", "pyproject.toml"]


def test_a_local_folder_of_wheels_is_refused_or_sent(desi, tmp_path):
    make_wheel(tmp_path / "links", "tiny")
    options = [f"--find-links {tmp_path / 'links'}"]
    with pytest.raises(DependencyError, match="does not see"):
        desi.build("tiny", options=options)
    environment = desi.build("tiny", options=options, wheels="upload")
    assert desi.run(environment, "import tiny; print(tiny.VALUE)") == "1"


def test_the_python_that_is_not_there_is_named_with_those_that_are(desi):
    with pytest.raises(EnvironmentFailed, match=r"Python 3\.14 is needed") as caught:
        desi.build("six", version="3.14")
    assert f"{VERSION}." in str(caught.value)
    with pytest.raises(EnvironmentFailed, match="nowhere"):
        desi.build("six", policy="/nowhere/python")


def test_a_full_disk_is_named_and_nothing_is_left_of_the_build(desi):
    with faults.small_disk(desi.host, desi.user, str(desi.root), size="20M"):
        with pytest.raises(EnvironmentFailed, match=r"the disk of .*environments is full") as caught:
            desi.build("numpy")
        assert "srf clean" in str(caught.value)
        assert [path.name for path in desi.seen("environments").iterdir() if path.suffix != ".lock"] == []


def test_another_version_by_its_path(desi):
    environment = desi.build("six==1.16.0", version="3.12", policy="/usr/local/bin/python3.12")
    assert desi.run(environment, "import sys; print(sys.version_info[:2])") == "(3, 12)"


def test_kept_as_one_file_and_unpacked_on_the_node(desi):
    server = desi.server()
    environment = desi.build("six==1.16.0", server=server, packed=True)
    files = {path.name for path in desi.host.path(environment).iterdir()}
    assert files == {installation.ARCHIVE, "whole.json"}
    code = (
        f"import sys, os, subprocess; sys.path.insert(0, {str(server.agent.tools)!r})\n"
        "from slurm_ray_flow.remote.environment import installation as packing\n"
        f"prefix = packing.unpacked({str(environment / installation.ARCHIVE)!r})\n"
        "python = os.path.join(prefix, 'bin', 'python')\n"
        "print(subprocess.check_output([python, '-I', '-c', 'import six; print(six.__file__)'], text=True).strip())\n"
        "packing.remove(prefix); print(os.path.exists(os.path.dirname(prefix)))"
    )
    file, left = desi.host.run("frank", [f"python{VERSION}", "-I", "-c", code]).stdout.split()
    assert file.startswith(f"/tmp/{installation.PREFIX}")
    assert left == "False"
    assert [held.digest for held in server.environments()] == ["d1"]
    assert not list(desi.host.path("/tmp").glob(f"{installation.PREFIX}*"))
