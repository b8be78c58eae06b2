"""Launches that wait for a shared server in Prefect: real Prefect servers, heads, locks and kills."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import prepared
from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.lock import limit_name, waiting_state
from support import wait_for

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the lock is Linux's"),
]

SCRIPT = '''
import os, sys, threading, time
from pathlib import Path
from typing import ClassVar
from slurm_ray_flow import LocalMachine, slurm_ray_flow
from slurm_ray_flow.core.lock import Lock
from slurm_ray_flow.tasks import turn

turn.TOUCH_SECONDS = 1.0  # as if hours went by

class Shared(LocalMachine):
    """This machine under a lock."""
    _block_type_slug = "shared-test-machine"
    @property
    def label(self):
        return os.environ["TEST_LABEL"]
    @property
    def lock(self):
        return Lock(os.environ["TEST_LOCK"])

@slurm_ray_flow(cluster=Shared())
def work(who: str, notes: str, go: str) -> str:
    with open(notes, "a") as file:
        file.write(f"begin {who}\\n")
    deadline = time.monotonic() + 300
    while go and not os.path.exists(go) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    with open(notes, "a") as file:
        file.write(f"end {who}\\n")
    return who

if __name__ == "__main__":
    name, notes, count, go = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    threads = []
    for number in range(count):
        said = f"{name}-{number}" if count > 1 else name
        threads.append(threading.Thread(target=lambda said=said: print("value", work(said, notes, go), flush=True)))
    for thread in threads[1:]:
        thread.start()
        time.sleep(1.0)
    threads[0].run()
    for thread in threads[1:]:
        thread.join()
'''


class Shared:
    """A server of its own name and lock, and those who want it."""

    def __init__(self, folder):
        self.folder, self.label = folder, f"desi-{uuid.uuid4().hex[:8]}"
        self.lock, self.notes, self.go = folder / "the.lock", folder / "notes", folder / "go"
        self.lock.touch(mode=0o666)
        self.notes.touch()
        (folder / "script.py").write_text(SCRIPT)
        self.processes = []

    def launch(self, who, *, count=1, go=True, **environment):
        command = [sys.executable, "-W", "ignore", str(self.folder / "script.py"), who, str(self.notes), str(count)]
        env = {**os.environ, "TEST_LABEL": self.label, "TEST_LOCK": str(self.lock), "SRF_PROGRESS": "plain"}
        with open(self.folder / f"{who}.err", "wb") as errors:
            process = prepared.start(
                [*command, str(self.go) if go else ""],
                cwd=self.folder,
                env={**env, **environment},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.processes.append(process)
        return process

    def said(self, who):
        return (self.folder / f"{who}.err").read_text()

    def lines(self):
        return self.notes.read_text().splitlines()

    def one_at_a_time(self):
        lines = self.lines()
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        assert all(first.replace("begin", "end") == second for first, second in pairs), lines
        return [first.split()[1] for first, _ in pairs]

    @contextlib.contextmanager
    def held_by_a_stranger(self):
        """As SlurmRay's own wrapper holds it."""
        with open(self.lock, "a") as file:
            deadline = time.monotonic() + 300
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield

    def close(self):
        self.go.touch()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def shared(server, tmp_path):
    made = Shared(tmp_path)
    yield made
    made.close()


class Line:
    """What Prefect shows of a server."""

    def __init__(self, api, shared):
        self.api, self.label = api, shared.label

    def active(self):
        found = concurrency_limit.read(self.api, limit_name(self.label))
        return found.active if found else None

    def waiting(self):
        wanted = {"flow_runs": {"state": {"name": {"any_": [waiting_state(self.label)]}}}, "sort": "START_TIME_ASC"}
        return self.api.post("/flow_runs/filter", wanted)


@pytest.fixture
def line(api, shared):
    return Line(api, shared)


def test_who_waits_says_for_whom_and_a_stranger_is_shown(shared, line):
    with shared.held_by_a_stranger():
        first = shared.launch("first", go=False)
        wait_for(line.waiting)
        second = shared.launch("second", go=False)
        wait_for(lambda: len(line.waiting()) == 2)
        assert line.active() == 1, "the limit shows what somebody outside of Prefect holds"
        texts = [run["state"]["message"] for run in line.waiting()]
        assert "held by" in texts[0] and "since" in texts[0] and "0 ahead" in texts[0]
        assert "1 ahead" in texts[1]
        for who in ("first", "second"):
            wait_for(lambda who=who: f"waiting for {shared.label}: held by" in shared.said(who))
        assert not shared.lines()
    for process in (first, second):
        assert "value" in process.communicate(timeout=180)[0]
    assert shared.one_at_a_time() == ["first", "second"]
    wait_for(lambda: line.active() == 0)
    assert not [held for held in concurrency_limit.noted() if held.limit == limit_name(shared.label)]


def test_what_a_waiting_launch_needs_is_kept_from_expiring(shared, line):
    def young():
        return [path for path in (home() / "snapshots").glob("*/*.list") if path.stat().st_mtime > began]

    began = time.time()
    with shared.held_by_a_stranger():
        first = shared.launch("first", go=False)
        wait_for(line.waiting)
        used = young()
        assert used
        for path in used:
            os.utime(path, (1, 1))
        wait_for(lambda: young() == used)
    assert "value" in first.communicate(timeout=180)[0]


def test_two_prefect_servers_and_a_stranger_never_have_it_together(shared, line, other_home):
    with shared.held_by_a_stranger():
        ours = shared.launch("ours", count=3, go=False)
        theirs = shared.launch("theirs", count=3, go=False, **other_home)
        wait_for(lambda: len(line.waiting()) == 3)
    wait_for(lambda: len(shared.lines()) >= 4)
    with shared.held_by_a_stranger():
        before = shared.lines()
        assert len(before) % 2 == 0, "a run is under way although a stranger has the lock"
        time.sleep(1.0)
        assert shared.lines() == before
    for process in (ours, theirs):
        assert process.communicate(timeout=180)[0].count("value") == 3
    order = shared.one_at_a_time()
    assert len(order) == 6
    assert {one.split("-")[0] for one in order[:4]} == {"ours", "theirs"}, "neither starves"
    wait_for(lambda: line.active() == 0)


def test_a_killed_client_s_slot_comes_back_when_its_run_ends(shared, line):
    killed = shared.launch("killed")
    wait_for(lambda: shared.lines() == ["begin killed"])
    killed.kill()
    killed.communicate()
    after = shared.launch("after")
    wait_for(line.waiting)
    [held] = [held for held in concurrency_limit.noted() if held.limit == limit_name(shared.label)]
    time.sleep(8.0)  # the supervisor has looked
    assert (line.active(), shared.lines()) == (1, ["begin killed"])
    assert concurrency_limit.renew(line.api, held.lease), "the slot is still the killed client's"
    shared.go.touch()
    assert "value" in after.communicate(timeout=180)[0]
    assert shared.one_at_a_time() == ["killed", "after"]
    wait_for(lambda: line.active() == 0)


@pytest.mark.parametrize("how", ["prefect", "ctrl-c"])
def test_a_cancel_while_it_waits_is_done_at_once(shared, line, how):
    with shared.held_by_a_stranger():
        first = shared.launch("first", go=False)
        wait_for(line.waiting)
        [flow_run] = line.waiting()
        began = time.monotonic()
        if how == "prefect":
            state = {"type": "CANCELLING"}
            line.api.post(f"/flow_runs/{flow_run['id']}/set_state", {"state": state, "force": True})
        else:
            first.send_signal(signal.SIGINT)
        first.communicate(timeout=180)
        assert time.monotonic() - began < 30
        assert first.returncode != 0
        second = shared.launch("second", go=False)
        wait_for(line.waiting)
    assert "value" in second.communicate(timeout=180)[0]
    assert shared.one_at_a_time() == ["second"]


def test_who_is_killed_in_the_line_holds_nobody_up(shared, line):
    from slurm_ray_flow import Handle, RunState

    with shared.held_by_a_stranger():
        first = shared.launch("first", go=False)
        wait_for(line.waiting)
        [flow_run] = line.waiting()
        assert Handle.attach(flow_run["id"]).status() is RunState.WAITING
        first.kill()
        second = shared.launch("second", go=False)
        wait_for(lambda: {run["id"] for run in line.waiting()} - {flow_run["id"]})
    assert "value" in second.communicate(timeout=180)[0]
    assert line.api.get(f"/flow_runs/{flow_run['id']}")["state_type"] == "CRASHED"
    assert shared.one_at_a_time() == ["second"]


def test_a_restart_of_the_server_costs_neither_slot_nor_turn(shared, other_home, monkeypatch):
    from slurm_ray_flow.blocks.server import ensure_server, stop_server
    from slurm_ray_flow.blocks.server.files import auth_string, server_files

    for name, value in other_home.items():
        monkeypatch.setenv(name, value)
    api = Api(ensure_server(print).url, auth_string(server_files()))
    line = Line(api, shared)
    first = shared.launch("first")
    wait_for(lambda: shared.lines() == ["begin first"])
    second = shared.launch("second")
    wait_for(line.waiting)
    stop_server()
    assert ensure_server(print).url == api.url
    assert line.active() == 1
    time.sleep(3.0)
    assert shared.lines() == ["begin first"]
    shared.go.touch()
    for process in (first, second):
        assert "value" in process.communicate(timeout=180)[0]
    assert shared.one_at_a_time() == ["first", "second"]
    wait_for(lambda: line.active() == 0)


def test_path_of_notes_is_private(shared):
    concurrency_limit.note(concurrency_limit.HeldSlot("r", "l", "n", "u"))
    try:
        assert Path(concurrency_limit.folder()).stat().st_mode & 0o77 == 0
        assert (concurrency_limit.folder() / "r.json").stat().st_mode & 0o77 == 0
    finally:
        concurrency_limit.forget("r")
