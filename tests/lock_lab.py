"""Heads under a lock, of several users, and programs that take the lock as SlurmRay's wrapper did."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cloudpickle
import dill

from remote_lab import Lab, until
from slurm_ray_flow.remote.agent.operations import perform
from support import BOUND

USERS = (12001, 12002, 12003)
AT_ONCE = 30.0
"""Seconds within which even a slow machine does what is done at once."""
SYSTEM_PYTHON = "/usr/bin/python3"
FOREIGN = """
import fcntl, os, sys, time
os.umask(0)
fd = open(sys.argv[1], "w")
while True:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        time.sleep(0.02)
print("held", flush=True)
sys.stdin.readline()
print("released", flush=True)
"""


class LockLab:
    """A folder that stands for /tmp, with a lock in it, and a root folder for each user."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="srf-lock-"))
        self.folder.chmod(0o1777)
        self.path = str(self.folder / "server.lock")
        self.libraries = self.folder / "lib"
        for package in (cloudpickle, dill):
            shutil.copytree(Path(package.__file__).parent, self.libraries / package.__name__)
        self.labs, self.foreigners, self.heads = {}, [], {}

    def lab(self, user=0):
        """The root folder of one user, given by number."""
        if user not in self.labs:
            home = self.folder / f"home-{user}"
            home.mkdir(mode=0o700)
            self.labs[user] = Lab(home / "root")
            give(home, user)
        return self.labs[user]

    def start(self, name, function, *args, user=0, lock=None, **spec):
        """Start a head under the lock, with its call announced; gives its process, which is the keeper."""
        lab = self.lab(user)
        owner = {"run": name, "name": "test", "server": "s"}
        lock = {"path": self.path, "slots": 1, "gpus": None, "label": "desi", "owner": owner, **(lock or {})}
        python = SYSTEM_PYTHON if user else sys.executable
        spec = {"cpus": None, "python": python, **spec}
        lab.lay(name, function, *args, lock=lock, **spec)
        (lab.folder(name) / "inbox").mkdir(exist_ok=True)
        lab.enter(name, name)
        give(lab.folder(name), user)
        program = lab.package / "remote" / "head" / "head.py"
        environment = {**os.environ, "PYTHONPATH": str(self.libraries)}
        self.heads[name] = subprocess.Popen(
            [python, "-I", str(program), str(lab.root), name], env=environment, cwd="/", **_as(user)
        )
        return self.heads[name]

    def foreign(self, user=0):
        """A program that takes the lock as SlurmRay's wrapper did; ends at a line on its stdin."""
        process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", FOREIGN, self.path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", **_as(user),
        )  # fmt: skip
        self.foreigners.append(process)
        return process

    def state(self, **arguments):
        return perform("queue.state", {"path": self.path, **arguments})

    def close(self):
        for process in [*self.heads.values(), *self.foreigners]:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in [*self.heads.values(), *self.foreigners]:
            process.wait(BOUND)
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        until(lambda: not self.state()["holders"])
        shutil.rmtree(self.folder)


def _as(user):
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def give(folder, user):
    """Give a folder and all in it to a user."""
    if user:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, user, user, follow_symlinks=False)


def held(process):
    return process.stdout.readline() == "held\n"


def running(locked, name, user=0):
    log = locked.lab(user).folder(name) / "log.txt"
    return until(lambda: log.exists() and "sleeping" in log.read_text())


def child_of(pid):
    """The inner head: the keeper's child that is not the watchdog, which leads a session of its own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if os.getsid(int(child)) != int(child))


def zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
