"""Lays out a root folder as home does, and starts real heads in it. For the tests of the head and their scripts."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import slurm_ray_flow.remote as remote_package
from slurm_ray_flow.remote.shared import failures, payload, pickling, protocol
from support import BOUND

REMOTE = Path(remote_package.__file__).parent


class Lab:
    """A root folder with the tools in it."""

    def __init__(self, root):
        self.root = Path(root)
        self.package = self.root / "tools" / "digest" / "slurm_ray_flow"
        if not self.package.exists():
            shutil.copytree(REMOTE, self.package / "remote", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(REMOTE / "driver" / "package_in_run.py", self.package / "__init__.py")
        self.heads = []

    def folder(self, run_id):
        return self.root / "runs" / run_id

    def lay(self, run_id, function, *args, **spec):
        """Write a run's folder. A pair (module, name) is a function given by reference."""
        folder = self.folder(run_id)
        folder.mkdir(parents=True, mode=0o700)
        whole = {
            "format": 1, "run_id": run_id, "python": sys.executable, "isolated": False, "ray": False, "nodes": 1,
            "cpus": 2, "gpus": 0, "memory": None, "time_limit": None, "keep_warm": 0.0,
            "path": [], "working_directory": str(folder), "environment_variables": {}, **spec,
        }  # fmt: skip
        (folder / "spec.json").write_text(json.dumps(whole))
        called = ["reference", *function, "function"] if isinstance(function, tuple) else ["value", function]
        payload.write(str(folder / "function.dill"), called, pickling.dump)
        payload.write(str(folder / "arguments.dill"), {"args": list(args), "kwargs": {}}, pickling.dump)
        return folder

    def enter(self, allocation, run_id):
        """Put a call into an allocation's inbox."""
        inbox = self.folder(allocation) / "inbox"
        inbox.mkdir(exist_ok=True)
        (inbox / run_id).touch()

    def head(self, run_id, *flags, python=sys.executable, before=()):
        program = self.package / "remote" / "head" / "head.py"
        head = subprocess.Popen([*before, python, "-I", str(program), str(self.root), run_id, *flags])
        self.heads.append(head)
        return head

    def run(self, run_id, function, *args, **spec):
        """Lay a run out, run it in a head of its own to its end, and return its `call_ended`."""
        self.lay(run_id, function, *args, **spec)
        self.enter(run_id, run_id)
        self.head(run_id)
        ended = self.wait_for(run_id, "call_ended")
        self.wait_for(run_id, "released")
        return ended

    def events(self, run_id):
        with contextlib.suppress(FileNotFoundError):
            return protocol.parse_events((self.folder(run_id) / "events.jsonl").read_bytes())[0]
        return []

    def wait_for(self, run_id, event, seconds=BOUND):
        return until(lambda: next((e for e in self.events(run_id) if e["event"] == event), None), seconds)

    def log(self, run_id):
        return (self.folder(run_id) / "log.txt").read_text()

    def outcome(self, run_id, ended=None):
        path = self.folder(run_id) / "outcome.dill"
        return payload.read(str(path), pickling.load, ended["sha256"] if ended else None)

    def error(self, run_id):
        return failures.unpack(self.outcome(run_id))

    def close(self):
        for head in self.heads:
            if head.poll() is None:
                head.terminate()
            head.wait(BOUND)


def until(condition, seconds=BOUND):
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen within the time")


def processes_of(marker):
    """The pids whose environment, as they were started with, or inherited, holds `marker`."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and marker.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid()]


def nothing_left(name):
    """Wait until no process of this run is left."""
    until(lambda: not processes_of(f"SRF_RUN_ID={name}"))
    return True


def adder():
    """What is defined inside a function travels by value: the head can't import this file."""
    return lambda left, right: left + right
