"""Real heads on temporary roots: how a run can end, and what is left of it then."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remote_lab import Lab, adder, nothing_left, until
from support import BOUND

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")


@pytest.mark.parametrize(
    ("function", "cause", "field", "value"),
    [
        (lambda: os._exit(3), "crashed", "exit_code", 3),
        (lambda: ctypes.string_at(0), "crashed", "signal", signal.SIGSEGV),
        (lambda: sys.exit(4), "crashed", "exit_code", 4),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crashed", "signal", signal.SIGKILL),
    ],
    ids=["os._exit", "segmentation fault", "sys.exit", "SIGKILL"],
)
def test_a_process_that_dies_is_a_crash(lab, name, function, cause, field, value):
    ended = lab.run(name, function)
    assert (ended["cause"], ended[field]) == (cause, value)
    assert nothing_left(name)


def test_a_segmentation_fault_shows_where(lab, name):
    lab.run(name, lambda: ctypes.string_at(0))
    assert "Segmentation fault" in lab.log(name)


def test_more_memory_than_asked_for(lab, name):
    def greedy():
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20)) * 8)

    ended = lab.run(name, greedy, memory=300 << 20)
    assert ended["cause"] == "out_of_memory"
    assert "300 MiB" in ended["message"]


def sleeper():
    def sleep():
        print("sleeping", flush=True)
        time.sleep(600)

    return sleep


def start(lab, name, function=None, **spec):
    lab.lay(name, function or sleeper(), **spec)
    lab.enter(name, name)
    head = lab.head(name)
    until(lambda: (lab.folder(name) / "log.txt").exists() and "sleeping" in lab.log(name))
    return head


def test_the_time_limit(lab, name):
    ended = lab.run(name, sleeper(), time_limit=0.5)
    assert ended["cause"] == "time_limit"
    assert nothing_left(name)


def test_sigterm_cancels(lab, name):
    head = start(lab, name)
    head.terminate()
    assert lab.wait_for(name, "call_ended")["cause"] == "cancelled"
    assert lab.wait_for(name, "released")
    assert nothing_left(name)


def test_the_cancel_file(lab, name):
    start(lab, name)
    (lab.folder(name) / "cancel").touch()
    assert lab.wait_for(name, "call_ended")["cause"] == "cancelled"
    assert lab.wait_for(name, "released")


def child_of(pid):
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.parametrize("victim", ["keeper", "inner"])
def test_a_killed_head_leaves_nothing_and_says_so(lab, name, victim):
    def with_daemon():
        subprocess.Popen(["setsid", "sleep", "600"])
        sleep()

    sleep = sleeper()
    head = start(lab, name, with_daemon)
    os.kill(head.pid if victim == "keeper" else child_of(head.pid), signal.SIGKILL)
    assert lab.wait_for(name, "call_ended")["cause"] == "lost"
    assert lab.wait_for(name, "released")
    assert nothing_left(name)


def test_what_a_call_leaves_behind_is_ended(lab, name):
    def leaves():
        subprocess.Popen(["setsid", "sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        return 1

    assert lab.run(name, leaves)["outcome"] == "value"
    assert nothing_left(name)


def test_detached_returns_when_allocated_and_says_why_not(lab, name):
    lab.lay(name, adder(), 1, 1)
    head = lab.head(name, "--detach")
    assert head.wait(BOUND) == 0
    assert lab.events(name)[0]["event"] == "allocated"
    lab.enter(name, name)
    assert lab.wait_for(name, "released")
    assert lab.head("no-such-run", "--detach").wait(BOUND) != 0


def test_calls_of_a_warm_head_run_in_order_and_each_in_a_fresh_process(lab, name):
    lab.lay(name, os.getpid, keep_warm=30)
    lab.enter(name, name)
    head = lab.head(name)
    for number in range(3):
        lab.lay(f"{name}-{number}", os.getpid)
        lab.enter(name, f"{name}-{number}")
    pids = [lab.wait_for(run, "call_ended") and lab.outcome(run)["value"] for run in runs(name)]
    assert len(set(pids)) == 4
    times = [(lab.wait_for(run, "call_started")["time"], lab.wait_for(run, "call_ended")["time"]) for run in runs(name)]
    assert sorted(sum(times, ())) == list(sum(times, ()))
    head.terminate()
    assert lab.wait_for(name, "released")


def test_a_warm_head_whose_folder_is_removed_ends(lab, name):
    lab.lay(name, adder(), 1, 2, keep_warm=600)
    lab.enter(name, name)
    head = lab.head(name)
    lab.wait_for(name, "call_ended")
    for _ in range(100):  # the head may lay files of its next call meanwhile
        shutil.rmtree(lab.root / "runs", ignore_errors=True)
        if head.poll() is not None:
            break
        time.sleep(0.1)
    assert head.wait(BOUND) == 0
    assert nothing_left(name)


def runs(name):
    return [name, *(f"{name}-{number}" for number in range(3))]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_still_ends_with_a_cause(tmp_path, name):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    lab = Lab(disk / "root")
    try:
        ended = lab.run(name, lambda: os.urandom(8 << 20))
        assert ended["cause"] == "result"
        assert "No space left" in ended["message"]
        fills = lambda: Path("filler").open("wb", buffering=0).write(b"x" * (4 << 20))  # noqa: E731, SIM115
        assert lab.run(name + "-f", fills)["cause"] in ("result", None)
    finally:
        lab.close()
        subprocess.run(["umount", "-l", disk], check=True)
