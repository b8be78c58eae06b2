"""What a run under a lock is held to, by a control group or without one; with Ray, and with a packed environment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lock_lab import AT_ONCE, USERS, child_of, held, running, zombie
from remote_lab import processes_of, until
from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.lock import confinement

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux"),
    pytest.mark.skipif(os.geteuid() != 0, reason="several users need root"),
]
MEMORY = 200 << 20
needs_group = pytest.mark.skipif(not list(confinement._parents()), reason="no control group can be made here")


def groups(name):
    return [folder for _, parent in confinement._parents() for folder in Path(parent).glob(f"srf-{name}*")]


def greedy():
    def grow():
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20)) * 8)

    return grow


@pytest.mark.parametrize("user", [0, USERS[0]])
def test_more_memory_than_asked_for_is_out_of_memory_by_whatever_means_there_is(locked, name, user):
    locked.start(name, greedy(), user=user, memory=MEMORY)
    by = locked.lab(user).wait_for(name, "lock_held")["enforced"]["memory"]
    assert ("cgroup" in by) == (user == 0 and bool(list(confinement._parents())))
    assert "watch" in by
    assert locked.lab(user).wait_for(name, "call_ended")["cause"] == "out_of_memory"
    locked.lab(user).wait_for(name, "released")
    until(lambda: not groups(name))


CONFINED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from slurm_ray_flow.remote.lock import confinement as confine
group = confine.make(sys.argv[2], 64 << 20, [0], ray=False)
child = os.fork()
if child == 0:
    group.join()
    print(confine.own_kills(), end=" ", flush=True)
    held = []
    while True:
        held.append(b"x" * (1 << 20))
_, status = os.waitpid(child, 0)
print(os.WTERMSIG(status), group.kills(), group.remove(), os.path.exists(group.folder))
"""


@needs_group
def test_the_kernel_ends_what_outgrows_its_group(name):
    source = Path(confinement.__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", CONFINED, source, name], stdout=subprocess.PIPE, check=True, timeout=180
    )
    before, number, kills, removed, there = said.stdout.decode().split()
    assert (before, int(number), int(kills) > 0, removed, there) == ("0", signal.SIGKILL, True, "True", "False")


@needs_group
@pytest.mark.parametrize("victims", ["keeper", "inner", "both"])
def test_a_killed_head_leaves_no_group(locked, name, victims):
    def hides_and_sleeps():
        import subprocess

        subprocess.Popen(["setsid", "env", "-i", "sleep", "600"])
        print("sleeping", flush=True)
        time.sleep(600)

    head = locked.start(name, hides_and_sleeps, memory=MEMORY)
    running(locked, name)
    (group,) = groups(name)
    members = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    inner = child_of(head.pid)
    assert inner in members
    for pid in {"keeper": [head.pid], "inner": [inner], "both": [inner, head.pid]}[victims]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not locked.state()["holders"])
    assert [pid for pid in members if not zombie(pid)] == []
    until(lambda: not groups(name))


def test_a_run_keeps_to_the_processors_that_it_asked_for(locked, name):
    locked.start(name, lambda: sorted(os.sched_getaffinity(0)), cpus=1)
    given = locked.lab().wait_for(name, "lock_held")
    assert len(given["cpus"]) == 1
    locked.lab().wait_for(name, "call_ended")
    assert locked.lab().outcome(name)["value"] == given["cpus"]


@pytest.mark.ray
@pytest.mark.parametrize("victims", ["keeper", "inner", "both"])
def test_ray_is_gone_before_the_next_one_begins(locked, name, victims):
    def with_ray():
        import ray

        @ray.remote
        def sleep():
            time.sleep(600)

        waited = sleep.remote()
        print("sleeping", flush=True)
        ray.get(waited)

    head = locked.start(name, with_ray, ray=True, cpus=1)
    log = locked.lab().folder(name) / "log.txt"
    until(lambda: log.exists() and "sleeping" in log.read_text())
    events = [event["event"] for event in locked.lab().events(name)]
    assert events.index("lock_held") < events.index("ray_starting")
    family = [pid for pid in processes_of(f"SRF_ALLOCATION={name}") if pid != head.pid]
    assert len(family) > 4
    folders = {argument.split("=")[1] for pid in family for argument in arguments(pid) if "--temp-dir=" in argument}
    assert folders
    inner, stranger = child_of(head.pid), locked.foreign(USERS[0])
    time.sleep(0.2)
    killed = time.monotonic()
    for pid in {"keeper": [head.pid], "inner": [inner], "both": [inner, head.pid]}[victims]:
        os.kill(pid, signal.SIGKILL)
    assert held(stranger)
    assert [pid for pid in family if not zombie(pid)] == []
    assert time.monotonic() - killed < AT_ONCE
    assert not [folder for folder in folders if os.path.exists(folder)]


def arguments(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def test_a_packed_environment_is_there_for_the_run_and_gone_with_it(locked, name, tmp_path):
    made = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    (made / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "dill.pth").write_text(
        str(locked.libraries)
    )
    installation.pack(made, tmp_path / installation.ARCHIVE)

    def where():
        import sys

        return sys.prefix

    locked.start(name, where, packed=str(tmp_path / installation.ARCHIVE))
    ended = locked.lab().wait_for(name, "call_ended")
    prefix = Path(locked.lab().outcome(name, ended)["value"])
    assert prefix.parent.name.startswith(installation.PREFIX)
    locked.lab().wait_for(name, "released")
    until(lambda: not prefix.parent.exists())


def test_a_packed_environment_that_is_damaged_is_told(lab, name, tmp_path):
    (tmp_path / "broken").write_bytes(b"no archive")
    lab.lay(name, lambda: 1, packed=str(tmp_path / "broken"))
    lab.enter(name, name)
    lab.head(name)
    assert lab.wait_for(name, "call_ended")["cause"] == "environment"
