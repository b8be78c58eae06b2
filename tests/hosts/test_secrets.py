"""Passwords, codes and secret variables of a launch on a real host: who could see them, and where they stay."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from hosts.ssh_lab import agent_on
from onlookers import files_with, processes_seen, told_by_prefect
from slurm_ray_flow import SshConnection, SshServer
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.errors import LogInFailed
from slurm_ray_flow.core.home import home

pytestmark = pytest.mark.server

LAUNCH = """
import json, os, sys
from slurm_ray_flow import slurm_ray_flow
@slurm_ray_flow(cluster={name!r}, env_vars={{"TOKEN": os.environ.pop("GIVEN")}})
def function():
    print("says it runs")
    return len(os.environ["TOKEN"]), os.umask(0), list(open_to_others())
def open_to_others():
    for place in ("~/.slurm-ray-flow", "~/.cache", "~/.local", "/tmp", "/dev/shm"):
        for folder, folders, files in os.walk(os.path.expanduser(place)):
            for name in folders + files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if status.st_uid == os.getuid() and not os.path.islink(path) and status.st_mode & 0o022:
                    yield path, oct(status.st_mode)
handle = function.submit()
length, umask, open_ = handle.result()
print("told", json.dumps({{"run": handle.run_id, "length": length, "umask": umask, "open": open_}}), flush=True)
print(repr(function.options), repr(handle), flush=True)
"""


@contextlib.contextmanager
def open_umask(host, user):
    """An account whose files are everybody's, as on some group servers."""
    rc = host.path(f"/home/{user}/.bashrc")
    before = rc.read_text() if rc.exists() else ""
    rc.write_text(f"umask 0\n{before}")
    try:
        yield
    finally:
        rc.write_text(before)


def typed(command, environment, answers, folder):
    """What a program shows in a terminal of its own, where each question gets its answer."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execve(command[0], command, environment)
    said, open_ = b"", dict(answers)
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while piece := os.read(terminal, 65536):
            said += piece
            for question in [question for question in open_ if question in said]:
                os.write(terminal, open_.pop(question)().encode() + b"\n")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said.decode()
    return said.decode(), pid


@pytest.fixture
def saved(server, hosts_lab):
    """Saves a cluster for an account whose password is in the block, or comes from the environment."""
    names = []

    def save(user, **fields):
        name = f"secrets-{user}-{secrets.token_hex(4)}"
        connection = SshConnection(host="desi", user=user, config_file=hosts_lab.ssh_config, **fields)
        block = SshServer(connection=connection, lock_path="")
        with connected(server):
            block.save(name)
        names.append(name)
        return name, block

    yield save
    with connected(server):
        for name in names:
            SshServer.delete(name)


@pytest.mark.parametrize("user", ["bob", "carol"])
def test_secrets_of_a_launch_are_where_they_must_be_and_nowhere_else(hosts_lab, server, saved, tmp_path, user):
    """Bob's password is in the environment; Carol's is in the block, and she types a code."""
    desi, password, token = hosts_lab["desi"], hosts_lab.password(user), secrets.token_hex(16)
    name, block = saved(user, **({"password": password} if user == "carol" else {}))
    environment = {**os.environ, "GIVEN": token, "SRF_PROGRESS": "plain"}
    if user == "bob":
        environment[name.upper().replace("-", "_") + "_PASSWORD"] = password
    (tmp_path / "script.py").write_text(LAUNCH.format(name=name))
    codes = []
    answers = {b"One-time code: ": lambda: codes.append(desi.new_code(user)) or codes[0]} if user == "carol" else {}
    with open_umask(desi, user), processes_seen() as seen:
        shown, pid = typed([sys.executable, "script.py"], environment, answers, tmp_path)
    said = json.loads(shown.split("told ")[1].splitlines()[0])
    assert (said["length"], said["umask"]) == (len(token), 0)
    # uv opens its own lock files to everybody, in folders that are not.
    assert [path for path, _ in said["open"] if not path.endswith(".lock")] == []
    assert {path.stat().st_mode & 0o777 for path in desi.path(f"/home/{user}").glob(".slurm-ray-flow")} == {0o700}
    words = [password, token, *codes]
    run_id = said["run"]

    # The launching process was given them in its environment. Nobody else was, and nobody in arguments.
    launching = next(arguments for number, arguments, _ in seen if number == pid and b"script.py" in arguments)
    for word in words:
        assert not [arguments for _, arguments, _ in seen if word.encode() in arguments]
        given = {arguments for _, arguments, environment in seen if word.encode() in environment}
        assert given <= {launching}, word
    assert any(b"remote/head/head.py" in arguments for _, arguments, _ in seen), "the host's processes are seen"

    told = [desi.log(), told_by_prefect(server, run_id, "says it runs"), *_blocks(server, name), repr(block)]
    told += [str(block), block.model_dump_json(), repr(block.connection)]
    for word in words:
        assert not [text for text in told if word in text], word
        assert word not in shown or word in codes  # the terminal shows a code that is typed
    # The run's own spec holds its variables, in a folder that is its user's alone.
    there = [path for place in ("home", "tmp", "var/log", "dev/shm", "run") for path in _under(desi.path(f"/{place}"))]
    holding = {path for word in words for path in there if _holds(path, word)}
    assert {path.name for path in holding} <= {"spec.json"}
    assert all(path.stat().st_mode & 0o777 == 0o600 and str(run_id) in str(path) for path in holding)
    assert not [path for word in (password, *codes) for path in files_with(word, home())]
    assert not [path for path in files_with(token, home()) if path.stat().st_mode & 0o077]


def _blocks(server, name):
    """What Prefect's API tells of a saved cluster to who does not ask for its secrets."""
    from slurm_ray_flow.blocks.server.api import Api
    from slurm_ray_flow.blocks.server.files import auth_string, server_files

    api = Api(server.url, auth_string(server_files()))
    listed = api.post("/block_documents/filter", {"include_secrets": False})
    (one,) = [found for found in listed if found["name"] == name]
    assert one["data"]["connection"]["user"]
    return json.dumps(listed), json.dumps(api.get(f"/block_documents/{one['id']}"))


def _under(folder):
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path


def _holds(path, word):
    with contextlib.suppress(OSError):
        return word.encode() in path.read_bytes()
    return False


def test_no_exception_of_a_log_in_holds_a_secret(hosts_lab):
    wrong, typed_code = secrets.token_hex(16), "000000"
    asked = []

    def prompt(text, seen):
        asked.append(text)
        return typed_code

    with agent_on(hosts_lab, user="carol", password=wrong, prompt=prompt) as agent:
        with pytest.raises(LogInFailed) as caught:
            agent.hello  # noqa: B018
        connection = agent.connection
        held = f"{connection!r}{connection._secrets_by_server!r}"
        text = f"{caught.value!r}{caught.value}{vars(caught.value)}{held}{asked}"
    assert wrong not in text
    assert typed_code not in text
    assert wrong not in hosts_lab["desi"].log()


def test_programs_at_home_get_no_password_of_a_cluster(hosts_lab, tmp_path):
    """A program on the PATH in place of ssh tells what it was given."""
    told = tmp_path / "told"
    fake = tmp_path / "ssh"
    fake.write_text(f'#!/bin/sh\nenv >> {told}\nexec /usr/bin/ssh "$@"\n')
    fake.chmod(0o755)
    word = secrets.token_hex(8)
    variables = {"DESI_PASSWORD": word, "LABEL_PASSWORD": word, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    program = (
        "import sys; from slurm_ray_flow.blocks.ssh import SshConnection\n"
        "SshConnection(host='desi', user='frank', config_file=sys.argv[1]).open('label')\n"
    )
    command = [sys.executable, "-c", program, str(hosts_lab.ssh_config)]
    subprocess.run(command, check=True, env={**os.environ, **variables})
    assert "PATH=" in Path(told).read_text()
    assert word not in Path(told).read_text()
