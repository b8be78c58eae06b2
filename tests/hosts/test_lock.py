"""The lock on a real host: users who log in for themselves, heads that they start, and a stranger among them."""

import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import dill
import pytest

import slurm_ray_flow.remote as remote_package
from lock_lab import FOREIGN
from remote_lab import Lab, until

USERS = ("alice", "bob", "frank")
ASKS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from slurm_ray_flow.remote.agent.operations import perform
print(json.dumps(perform("queue.state", {"path": sys.argv[2]})))
"""


class Site:
    """A host with a root folder for each of its users and one lock."""

    def __init__(self, host):
        self.host, self.mark = host, secrets.token_hex(4)
        self.lock = f"/tmp/lock-{self.mark}"
        self.python = f"/usr/local/bin/python3.{sys.version_info.minor}"
        self.shared = f"/tmp/programs-{self.mark}"
        seen = host.path(self.shared)
        for library in (cloudpickle, dill):
            shutil.copytree(Path(library.__file__).parent, seen / library.__name__)
        package = seen / "slurm_ray_flow"
        shutil.copytree(Path(remote_package.__file__).parent, package / "remote")
        shutil.copy(package / "remote" / "driver" / "package_in_run.py", package / "__init__.py")
        seen.chmod(0o755)

    def root(self, user):
        return f"/home/{user}/lock-{self.mark}"

    def start(self, user, name, function):
        self.host.run(user, ["mkdir", "-p", f"{self.root(user)}/tools/digest"])
        folder = self.host.path(self.root(user))
        (folder / "tools" / "digest" / "slurm_ray_flow").exists() or shutil.copytree(
            self.host.path(self.shared) / "slurm_ray_flow", folder / "tools" / "digest" / "slurm_ray_flow"
        )
        lab = Lab(folder)
        inside = f"{self.root(user)}/runs/{name}"
        owner = {"run": name, "name": "test", "server": "s"}
        lock = {"path": self.lock, "slots": 1, "gpus": None, "label": "desi", "owner": owner}
        lab.lay(name, function, lock=lock, cpus=None, python=self.python, working_directory=inside)
        lab.enter(name, name)
        self.host.run("root", ["chown", "-R", f"{user}:", self.root(user)])
        head = f"{self.root(user)}/tools/digest/slurm_ray_flow/remote/head/head.py"
        command = [self.python, "-I", head, self.root(user), name, "--detach"]
        self.host.run(user, command, env={"PYTHONPATH": self.shared}, timeout=180)
        return lab

    def state(self, user):
        asked = self.host.run(user, [self.python, "-I", "-c", ASKS, self.shared, self.lock])
        return json.loads(asked.stdout)

    def stranger(self, user):
        whole = ["nsenter", "-t", str(self.host.pid), "-m", "-u", "-i", "-n", "-p", "--", "setpriv", f"--reuid={user}"]
        return subprocess.Popen(
            [*whole, f"--regid={user}", "--init-groups", self.python, "-c", FOREIGN, self.lock],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def site(hosts_lab):
    return Site(hosts_lab["desi"])


def noting(path):
    def note():
        import os
        import time

        for word in ("begin", "end"):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, (word + "\n").encode())
            time.sleep(0.1)

    return note


def test_three_users_of_a_host_and_a_stranger_take_turns(site):
    notes = f"/tmp/notes-{site.mark}"
    site.host.path(notes).touch()
    site.host.path(notes).chmod(0o666)
    with site.stranger("erin") as stranger:
        assert stranger.stdout.readline() == "held\n"
        runs = [(USERS[number % 3], f"{site.mark}-{number}") for number in range(6)]
        labs = []
        for user, name in runs:
            labs.append(site.start(user, name, noting(notes)))
            labs[-1].wait_for(name, "waiting")
        seen = site.state("dave")
        assert [(holder["user"], holder["foreign"]) for holder in seen["holders"]] == [("erin", True)]
        assert [(waiter["user"], waiter["run"]) for waiter in seen["waiting"]] == runs
        stranger.stdin.close()
        times = [lab.wait_for(name, "lock_held")["time"] for lab, (_, name) in zip(labs, runs, strict=True)]
        assert times == sorted(times)
        ends = [lab.wait_for(name, "call_ended")["outcome"] for lab, (_, name) in zip(labs, runs, strict=True)]
        assert ends == ["value"] * 6
    assert site.host.path(notes).read_text().split() == ["begin", "end"] * 6
    until(lambda: site.state("dave")["holders"] == [])
    assert not [arguments for arguments in site.host.processes().values() if site.mark in " ".join(arguments)]
