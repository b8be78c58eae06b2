"""The machine loses its power while runs are under way: then each run's value, or why there is none, can be had.

All processes of one home are stopped and killed at a moment that a seed chooses; what was written in the last seconds
is cut off, gone, or zeros, as a file system leaves it. With SRF_POWER_CUTS=20 that is done twenty times, with twenty
runs each; `-s` shows what became of them.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import prepared
from shared_server import begin_empty
from support import wait_for

pytestmark = pytest.mark.server

CUTS = int(os.environ.get("SRF_POWER_CUTS", "2"))
RUNS = 20 if CUTS > 2 else 4
LOST_SECONDS = 2.0
"""What was written in so many last seconds may not be on the disk."""
SYNCED = {"prefect.db", "secret", "encryption_key"}
"""What SQLite and we bring to the disk before we go on."""
BOUND = 240
"""Seconds for one command; more is a hang."""
TRACEBACK = "Traceback (most recent call last)"
SCRIPT = """
import sys, time
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow
def slow(number):
    time.sleep(number % 5)
    return 1000 + number

if __name__ == "__main__":
    handles = []
    for number in range(int(sys.argv[1])):
        handles.append(slow.submit(number))
        print(handles[-1].run_id, number, flush=True)
    for handle in handles:
        handle.result()
"""


class Cut:
    """A home of its own, in which runs are under way until the power goes."""

    def __init__(self, folder, seed):
        self.chance, self.home = random.Random(seed), folder / "home"
        self.said = folder / "said"
        (folder / "launches.py").write_text(SCRIPT)
        begin_empty(self.home)
        self.environment = {**os.environ, "SRF_HOME": str(self.home), "PREFECT_HOME": str(self.home / "prefect")}
        with self.said.open("w") as said, (folder / "errors").open("w") as errors:
            command = [sys.executable, "launches.py", str(RUNS)]
            self.script = subprocess.Popen(command, cwd=folder, env=self.environment, stdout=said, stderr=errors)
        self.folder = folder

    def happen(self):
        """Wait for the moment, kill all at once, and damage what may not be on the disk."""
        if self.chance.random() < 0.8:
            wait_for(lambda: self.begun() or self.script.poll() is not None)
        time.sleep(self.chance.uniform(0, 2 + RUNS / 2))
        wait_for(self._kill)
        self.script.wait()
        now = time.time()
        files = [path for path in sorted(self.home.rglob("*")) if path.is_file() and not path.is_symlink()]
        late = [path for path in files if path.stat().st_mtime > now - LOST_SECONDS and path.name not in SYNCED]
        for path in late:
            self._damage(path)
        return len(late)

    def begun(self):
        """The runs that the script has told of, with what each was called with."""
        lines = [line.split() for line in self.said.read_text().splitlines()]
        return {line[0]: int(line[1]) for line in lines if len(line) == 2}

    def _kill(self):
        """Stop all, then kill them: none sees another one's end. Gives whether none is left."""
        found = self.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        return not found

    def processes(self):
        """Those that carry this home in their variables."""
        mark = f"SRF_HOME={self.home}\0".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark in Path("/proc", pid, "environ").read_bytes():
                    found.append(int(pid))
        return found

    def _damage(self, path):
        size, how = path.stat().st_size, self.chance.choice(["whole", "cut off", "zeros", "gone"])
        keep = self.chance.randint(0, size)
        if how == "whole":
            return
        if how == "gone":  # its name was not on the disk yet
            path.unlink()
            return
        times = path.stat()
        os.truncate(path, keep)
        if how == "zeros":
            os.truncate(path, size)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def srf(self, *arguments):
        """A command afterwards: it ends, and shows no traceback."""
        done = prepared.run([prepared.SRF, *arguments], env=self.environment, timeout=BOUND)
        assert TRACEBACK not in done.stdout + done.stderr, f"{arguments}: {done.stderr}"
        return done

    def end(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            prepared.run([prepared.SRF, "down"], env=self.environment, timeout=BOUND)
        wait_for(self._kill)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture
def cut(tmp_path, request):
    made = Cut(tmp_path, request.param)
    yield made
    made.end()


@pytest.mark.parametrize("cut", range(1, CUTS + 1), indirect=True)
def test_each_run_has_its_value_or_its_cause(cut):
    lost = cut.happen()
    runs = cut.begun()
    listed = cut.srf("runs", "--json", "-n", "100")
    assert listed.returncode == 0, listed.stderr
    states = {one["run_id"]: one["state"] for one in json.loads(listed.stdout)}
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda run_id: cut.srf("attach", run_id), runs))
    for (run_id, number), done in zip(runs.items(), ended, strict=True):
        print(states.get(run_id, "no record"), done.returncode, done.stderr.strip().splitlines()[:1])
        if done.returncode == 0:
            assert f"gave {1000 + number}" in done.stdout
        else:
            assert done.stderr.strip(), f"run {run_id} ends without a word"
    cleaned = cut.srf("clean")
    assert cleaned.returncode == 0, cleaned.stderr
    print(f"{len(runs)} runs, {lost} files written last")
