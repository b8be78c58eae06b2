"""People who still use SlurmRay's own wrapper and we exclude each other: whoever has the lock, the other one waits."""

import os
import subprocess
import sys
import time

import pytest

from lock_lab import LockLab, held
from support import BOUND

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux"),
    pytest.mark.skipif(os.geteuid() != 0, reason="several users need root"),
]
WRAPPER, ALICE, BOB = 12001, 12002, 12003


@pytest.fixture
def locked():
    lab = LockLab()
    yield lab
    lab.close()


@pytest.fixture
def name():
    return f"contract-{os.getpid()}"


def until_told(go_on):
    """A function that runs until a file is there."""

    def run():
        import os
        import time

        while not os.path.exists(go_on):
            time.sleep(0.02)

    return run


@pytest.mark.parametrize("slots", [1, 2])
def test_the_wrapper_waits_for_us_and_we_for_it(locked, name, slots):
    go_on, lock = str(locked.folder / "go-on"), {"slots": slots}
    locked.start(name, until_told(go_on), user=ALICE, lock=lock)
    locked.lab(ALICE).wait_for(name, "call_started")
    wrapper = locked.foreign(WRAPPER)
    time.sleep(0.5)
    assert locked.state(slots=slots)["holders"][0]["run"] == name
    (locked.folder / "go-on").touch()
    assert locked.lab(ALICE).wait_for(name, "call_ended")["outcome"] == "value"
    assert held(wrapper)
    locked.start(name + "-2", lambda: 2, user=BOB, lock=lock)
    locked.lab(BOB).wait_for(name + "-2", "waiting")
    time.sleep(0.5)
    assert locked.lab(BOB).events(name + "-2")[-1]["event"] == "waiting"
    wrapper.stdin.close()
    assert locked.lab(BOB).wait_for(name + "-2", "call_ended")["outcome"] == "value"


@pytest.mark.parametrize("way", ["in order", "killed"])
def test_the_wrapper_s_turn_ends_however_it_ends(locked, name, way):
    wrapper = locked.foreign(WRAPPER)
    assert held(wrapper)
    locked.start(name, lambda: 1, user=ALICE)
    assert locked.lab(ALICE).wait_for(name, "waiting")["holder"]["user"] == f"user {WRAPPER}"
    time.sleep(0.3)
    assert [event["event"] for event in locked.lab(ALICE).events(name)][-1] == "waiting"
    wrapper.kill() if way == "killed" else wrapper.stdin.close()
    assert locked.lab(ALICE).wait_for(name, "call_ended")["outcome"] == "value"


def test_the_wrapper_s_file_is_as_we_found_it(locked, name):
    with open(locked.path, "w") as file:
        file.write("123\n")
    os.chmod(locked.path, 0o666)
    before = os.stat(locked.path)
    locked.start(name, lambda: 1, user=ALICE)
    locked.lab(ALICE).wait_for(name, "released")
    after = os.stat(locked.path)
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, 4)


def test_many_wrappers_and_many_of_ours_never_at_once_and_all_finish(locked, name):
    notes = locked.folder / "notes"
    notes.touch()
    notes.chmod(0o666)
    wrappers = [wrap(locked, notes, WRAPPER + number) for number in range(3)]
    runs = [(f"{name}-{number}", (ALICE, BOB)[number % 2]) for number in range(4)]
    for run, user in runs:
        locked.start(run, noting(str(notes)), user=user)
    for run, user in runs:
        assert locked.lab(user).wait_for(run, "call_ended")["outcome"] == "value"
    assert [wrapper.wait(BOUND) for wrapper in wrappers] == [0, 0, 0]
    assert notes.read_text().split() == ["begin", "end"] * 7


def noting(path):
    def note():
        import time

        for word in ("begin", "end"):
            with open(path, "a") as file:
                file.write(word + "\n")
            time.sleep(0.1)

    return note


TAKES_TURNS = """
import fcntl, os, sys, time
os.umask(0)
fd = open(sys.argv[1], "w")
while True:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        time.sleep(0.02)
for word in ("begin", "end"):
    open(sys.argv[2], "a").write(word + "\\n")
    time.sleep(0.1)
"""


def wrap(locked, notes, user):
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", TAKES_TURNS, locked.path, str(notes)],
        user=user, group=user, extra_groups=[], cwd="/",
    )  # fmt: skip
    locked.foreigners.append(process)
    return process
