"""Real heads under a real lock: whose turn it is, what they are given, and what is left when they are killed."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lock_lab import AT_ONCE, USERS, child_of, held, running, zombie
from remote_lab import nothing_left, processes_of, until
from support import BOUND

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux"),
    pytest.mark.skipif(os.geteuid() != 0, reason="several users need root"),
]


def noting(path, seconds=0.15):
    """A function that notes when it began and ended, and fails if another one runs."""

    def note():
        import time

        def say(word):
            with open(path, "a") as file:
                file.write(f"{word}\n")

        say("begin")
        time.sleep(seconds)
        say("end")

    return note


def sleeper():
    def sleep():
        print("sleeping", flush=True)
        time.sleep(600)

    return sleep


def shared_file(locked):
    path = locked.folder / "notes"
    path.touch()
    path.chmod(0o666)
    return path


def test_nine_runs_of_three_users_take_turns_in_their_order_with_strangers_between(locked, name):
    notes, first = shared_file(locked), locked.foreign(USERS[0])
    assert held(first)
    runs = [(f"{name}-{number}", USERS[number % 3]) for number in range(9)]
    for run, user in runs:
        locked.start(run, noting(str(notes)), user=user)
        locked.lab(user).wait_for(run, "waiting")
    between = locked.foreign(USERS[1])
    assert [waiter["run"] for waiter in locked.state()["waiting"]] == [run for run, _ in runs]
    first.stdin.close()
    assert held(between)
    lines = notes.read_text().splitlines()
    assert lines.count("begin") == lines.count("end")
    time.sleep(0.3)
    assert notes.read_text().splitlines() == lines
    between.stdin.close()
    times = [locked.lab(user).wait_for(run, "lock_held")["time"] for run, user in runs]
    assert times == sorted(times)
    assert all(locked.lab(user).wait_for(run, "call_ended")["outcome"] == "value" for run, user in runs)
    assert notes.read_text().splitlines() == ["begin", "end"] * 9


def test_a_waiter_says_who_holds_the_lock_and_how_many_are_before_it(locked, name):
    stranger = locked.foreign(USERS[0])
    assert held(stranger)
    locked.start(name, noting(str(shared_file(locked))))
    said = locked.lab().wait_for(name, "waiting")
    assert said["ahead"] == 0
    assert said["holder"]["user"] == f"user {USERS[0]}"
    assert abs(said["holder"]["since"] - time.time()) < 30
    state = locked.state()
    assert [(holder["foreign"], holder["pid"]) for holder in state["holders"]] == [(True, stranger.pid)]
    assert (state["free"], state["slots"]) == (0, 1)
    stranger.kill()
    assert locked.lab().wait_for(name, "lock_held", AT_ONCE)


def test_the_next_one_follows_within_a_fifth_of_a_second(locked, name):
    waited = []
    for number in range(5):  # what else the machine does can only add to it
        stranger = locked.foreign()
        assert held(stranger)
        locked.start(f"{name}-{number}", noting(str(shared_file(locked))))
        locked.lab().wait_for(f"{name}-{number}", "waiting")
        released = time.time()
        stranger.kill()
        waited.append(locked.lab().wait_for(f"{name}-{number}", "lock_held")["time"] - released)
    assert min(waited) < 0.4


@pytest.mark.parametrize("way", ["cancel", "SIGTERM"])
def test_a_waiter_is_cancelled_at_once(locked, name, way):
    assert held(locked.foreign())
    head = locked.start(name, sleeper())
    locked.lab().wait_for(name, "waiting")
    if way == "cancel":
        (locked.lab().folder(name) / "cancel").touch()
    else:
        head.terminate()
    assert locked.lab().wait_for(name, "call_ended", AT_ONCE)["cause"] == "cancelled"
    assert head.wait(BOUND) is not None
    assert locked.state()["waiting"] == []


def test_the_time_limit_begins_with_the_lock(locked, name):
    stranger = locked.foreign()
    assert held(stranger)
    locked.start(name, lambda: 7, time_limit=8.0)
    locked.lab().wait_for(name, "waiting")
    time.sleep(8.2)
    stranger.kill()
    assert locked.lab().wait_for(name, "call_ended")["outcome"] == "value"


def test_a_dead_or_stopped_waiter_holds_nobody_up(locked, name):
    stranger = locked.foreign()
    assert held(stranger)
    dead, stopped = locked.start(name + "-dead", sleeper()), locked.start(name + "-stopped", sleeper())
    for run in (name + "-dead", name + "-stopped"):
        locked.lab().wait_for(run, "waiting")
    locked.start(name, lambda: 1, user=USERS[0])
    locked.lab(USERS[0]).wait_for(name, "waiting")
    dead.kill()
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        stranger.kill()
        assert locked.lab(USERS[0]).wait_for(name, "call_ended")["outcome"] == "value"
    finally:
        os.kill(stopped.pid, signal.SIGCONT)


def backgrounder():
    def leave_things_and_sleep():
        import subprocess

        subprocess.Popen(["setsid", "sleep", "600"])
        print("sleeping", flush=True)
        time.sleep(600)

    return leave_things_and_sleep


@pytest.mark.parametrize("victims", ["keeper", "inner", "both"])
def test_a_kill_frees_the_lock_at_once_and_nothing_of_the_run_is_left(locked, name, victims):
    head = locked.start(name, backgrounder())
    running(locked, name)
    family = [pid for pid in processes_of(f"SRF_ALLOCATION={name}") if pid != head.pid]
    assert len(family) >= 2
    inner, stranger = child_of(head.pid), locked.foreign(USERS[0])
    time.sleep(0.2)
    killed = time.monotonic()
    for pid in {"keeper": [head.pid], "inner": [inner], "both": [inner, head.pid]}[victims]:
        os.kill(pid, signal.SIGKILL)
    assert held(stranger)
    assert [pid for pid in family if os.path.exists(f"/proc/{pid}") and not zombie(pid)] == []
    assert time.monotonic() - killed < AT_ONCE
    if victims != "both":
        assert locked.lab().wait_for(name, "call_ended")["cause"] == "lost"


def test_a_run_leaves_no_ticket_and_no_process(locked, name):
    assert locked.start(name, lambda: 1).wait(BOUND) == 0
    until(lambda: not locked.state()["holders"])
    assert nothing_left(name)
    assert [entry for entry in os.listdir(locked.path + ".queue") if not entry.endswith(".lock")] == []
    assert os.path.getsize(locked.path) == 0


def test_a_warm_head_that_idles_gives_way(locked, name):
    locked.start(name, lambda: 1, keep_warm=600.0)
    locked.lab().wait_for(name, "call_ended")
    until(lambda: [(holder["run"], holder["idle"]) for holder in locked.state()["holders"]] == [(name, True)])
    locked.start(name + "-2", lambda: 2, user=USERS[0])
    assert locked.lab(USERS[0]).wait_for(name + "-2", "call_ended", AT_ONCE)["outcome"] == "value"
    assert "waits" in locked.lab().wait_for(name, "released")["reason"]


def test_a_warm_head_shows_whether_it_idles(locked, name):
    head = locked.start(name, lambda: 1, keep_warm=600.0)
    until(lambda: [holder["idle"] for holder in locked.state()["holders"]] == [True])
    locked.lab().lay(name + "-2", sleeper())
    locked.lab().enter(name, name + "-2")
    running(locked, name + "-2")
    assert [holder["idle"] for holder in locked.state()["holders"]] == [False]
    head.terminate()
    head.wait(BOUND)
    until(lambda: not locked.state()["holders"])
    assert not os.listdir(locked.path + ".queue")


def where():
    def look():
        import os
        import time

        time.sleep(1.5)
        return sorted(os.sched_getaffinity(0)), os.environ.get("CUDA_VISIBLE_DEVICES")

    return look


def test_slots_are_shared_and_their_processors_and_cards_are_not(locked, name):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    lock, runs = {"slots": 2, "gpus": [3, 5]}, [(f"{name}-{number}", USERS[number]) for number in range(3)]
    for run, user in runs:
        locked.start(run, where(), user=user, lock=lock, gpus=1)
    given = [locked.lab(user).wait_for(run, "lock_held") for run, user in runs]
    seen = [
        locked.lab(user).wait_for(run, "call_ended") and locked.lab(user).outcome(run)["value"] for run, user in runs
    ]
    spans = [
        (given[number]["time"], locked.lab(user).wait_for(run, "released")["time"])
        for number, (run, user) in enumerate(runs)
    ]
    together = [(a, b) for a in range(3) for b in range(a) if spans[a][0] < spans[b][1] and spans[b][0] < spans[a][1]]
    assert together
    for a, b in together:
        assert not set(seen[a][0]) & set(seen[b][0])
        assert seen[a][1] != seen[b][1]
    assert {cards for _, cards in seen} <= {"3", "5"}
    assert all(len(grant["cpus"]) == len(cpus) for grant, (cpus, _) in zip(given, seen, strict=True))
    order = sorted(span[0] for span in spans)
    assert order[2] > min(span[1] for span in spans)


def test_a_stranger_and_slots_exclude_each_other(locked, name):
    locked.start(name, sleeper(), lock={"slots": 2})
    running(locked, name)
    state = locked.state(slots=2)
    assert (state["free"], [holder["run"] for holder in state["holders"]]) == (1, [name])
    stranger = locked.foreign()
    time.sleep(0.3)
    (locked.lab().folder(name) / "cancel").touch()
    assert held(stranger)
    locked.start(name + "-2", lambda: 1, lock={"slots": 2})
    locked.lab().wait_for(name + "-2", "waiting")
    assert locked.state(slots=2)["free"] == 0
    stranger.kill()
    assert locked.lab().wait_for(name + "-2", "call_ended")["outcome"] == "value"


def test_more_than_there_is_is_refused(locked, name):
    locked.start(name, lambda: 1, cpus=4096)
    assert locked.lab().wait_for(name, "call_ended")["cause"] == "rejected"


def test_a_head_that_is_started_again_runs_its_call_once(locked, name):
    notes = shared_file(locked)
    locked.start(name, noting(str(notes)))
    again = [locked.lab().head(name, "--detach") for _ in range(3)]
    assert [head.wait(BOUND) for head in again] == [0, 0, 0]
    locked.lab().wait_for(name, "released")
    assert locked.lab().head(name, "--detach").wait(BOUND) == 0
    assert notes.read_text().splitlines() == ["begin", "end"]
    assert [event["event"] for event in locked.lab().events(name)].count("allocated") == 1


def test_a_call_that_is_announced_again_does_not_run_again(lab, name, tmp_path):
    notes = tmp_path / "notes"
    lab.lay(name, noting(str(notes)), keep_warm=60.0)
    lab.enter(name, name)
    head = lab.head(name)
    lab.wait_for(name, "call_ended")
    lab.enter(name, name)
    until(lambda: not os.listdir(lab.folder(name) / "inbox"))
    lab.lay(name + "-2", lambda: 2)
    lab.enter(name, name + "-2")
    lab.wait_for(name + "-2", "call_ended")
    assert notes.read_text().splitlines() == ["begin", "end"]
    head.terminate()
    lab.wait_for(name, "released")


@pytest.mark.parametrize("planted", ["link", "fifo", "folder", "read-only"])
def test_what_was_planted_in_the_lock_s_place_is_told(locked, name, planted):
    path, other = Path(locked.path), locked.folder / "other"
    other.touch()
    {
        "link": lambda: path.symlink_to(other),
        "fifo": lambda: os.mkfifo(path, 0o666),
        "folder": path.mkdir,
        "read-only": lambda: path.touch(0o600),
    }[planted]()
    locked.start(name, lambda: 1, user=USERS[0])
    ended = locked.lab(USERS[0]).wait_for(name, "call_ended")
    assert (ended["cause"], ended["outcome"]) == ("lock", None)
    assert locked.path in ended["message"]
    {"folder": path.rmdir}.get(planted, path.unlink)()


def test_a_foreign_file_that_is_everybodys_will_do(locked, name):
    Path(locked.path).touch()
    os.chmod(locked.path, 0o666)
    os.chown(locked.path, USERS[1], USERS[1])
    locked.start(name, lambda: 1, user=USERS[0])
    assert locked.lab(USERS[0]).wait_for(name, "call_ended")["outcome"] == "value"


def test_a_file_that_is_replaced_while_one_waits_is_followed(locked, name):
    stranger = locked.foreign()
    assert held(stranger)
    locked.start(name, sleeper())
    locked.lab().wait_for(name, "waiting")
    os.unlink(locked.path)
    running(locked, name)
    assert locked.state()["holders"][0]["run"] == name
