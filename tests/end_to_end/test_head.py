"""Real heads on temporary roots: what a run can do to itself, and what is left of it."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from remote_lab import Lab, processes_of, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")
OLD_PYTHON = Path("~/.pyenv/versions/3.9.18/bin/python").expanduser()
counter = iter(range(1_000_000))


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "root")
    yield lab
    lab.close()


@pytest.fixture
def name():
    """A run id that no other process of this machine carries."""
    return f"run-{os.getpid()}-{next(counter)}"


def nothing_left(name):
    until(lambda: not processes_of(f"SRF_RUN_ID={name}"), 2.0)
    return True


def adder():
    """What is defined inside a function travels by value: the head can't import this file."""
    return lambda left, right: left + right


def test_a_value_comes_home_with_its_digest(lab, name):
    ended = lab.run(name, adder(), 1, 2)
    assert (ended["outcome"], ended["cause"]) == ("value", None)
    assert lab.outcome(name, ended) == {"value": 3}
    assert [e["event"] for e in lab.events(name)] == ["allocated", "call_started", "call_ended", "released"]
    assert nothing_left(name)


@pytest.mark.skipif(not OLD_PYTHON.exists(), reason="no Python 3.9 here")
def test_the_head_runs_on_an_old_python(lab, name):
    lab.lay(name, adder(), 1, 2)
    lab.enter(name, name)
    lab.head(name, python=OLD_PYTHON)
    assert lab.wait_for(name, "call_ended")["outcome"] == "value"
    assert lab.outcome(name) == {"value": 3}


def test_none_is_a_value(lab, name):
    ended = lab.run(name, lambda: None)
    assert ended["outcome"] == "value"
    assert lab.outcome(name, ended) == {"value": None}


def test_a_coroutine_function_is_awaited(lab, name):
    async def later():
        return "later"

    lab.run(name, later)
    assert lab.outcome(name) == {"value": "later"}


def test_a_function_by_reference_gets_path_folder_and_variables(lab, name, tmp_path):
    source = "import os\nfrom slurm_ray_flow import slurm_ray_flow, Handle\n@slurm_ray_flow(cluster='x')\n"
    source += "def where(): return os.getcwd(), os.environ['COLOUR'], __name__\n"
    (tmp_path / "mine.py").write_text(source)
    spec = {"path": [str(tmp_path)], "working_directory": str(tmp_path), "environment_variables": {"COLOUR": "red"}}
    ended = lab.run(name, ("mine", "where"), **spec)
    assert ended["outcome"] == "value", ended
    assert lab.outcome(name) == {"value": (str(tmp_path), "red", "mine")}
    for file in ("events.jsonl", "head.log"):
        path = lab.folder(name) / file
        assert not path.exists() or "red" not in path.read_text()


def test_an_exception_keeps_type_chain_and_traceback_without_our_frames(lab, name):
    def fails():
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer", 7) from error

    ended = lab.run(name, fails)
    assert (ended["outcome"], ended["cause"]) == ("exception", "user_code")
    error = lab.error(name)
    assert type(error) is ValueError
    assert error.args == ("outer", 7)
    assert type(error.__cause__) is KeyError
    assert "execution.py" not in lab.outcome(name)["traceback"]


SCRIPT = """
import sys
sys.path.insert(0, {helpers!r})
from remote_lab import Lab

class Odd(Exception):
    def __init__(self, first, second):
        super().__init__(first + second)
        self.second = second

class Point:
    def __init__(self, x): self.x = x
    def moved(self): return Point(self.x + 1)

def move(point):
    assert isinstance(point, Point)
    return point.moved()

def fail(point):
    raise Odd("a", "b")

lab = Lab({root!r})
lab.run({name!r} + "v", move, Point(1))
moved = lab.outcome({name!r} + "v")["value"]
assert isinstance(moved, Point) and moved.x == 2
lab.run({name!r} + "e", fail, Point(1))
try:
    raise lab.error({name!r} + "e")
except Odd as error:
    assert error.args == ("ab",) and error.second == "b"
    print("all well")
"""


def test_classes_of_a_script_are_its_own_when_they_come_back(lab, name, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(helpers=str(Path(__file__).parent), root=str(lab.root), name=name))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "all well", done.stderr


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


def test_a_value_that_cannot_be_pickled_names_its_part(lab, name):
    def stuck():
        return {"good": 1, "bad": [iter([]), (number for number in ())]}

    ended = lab.run(name, stuck)
    assert (ended["outcome"], ended["cause"]) == (None, "result")
    assert "value['bad'][1]" in ended["message"]


def test_a_million_lines(lab, name):
    def talk():
        for number in range(1_000_000):
            print(number)

    lab.run(name, talk)
    assert lab.log(name).split("\n") == [*map(str, range(1_000_000)), ""]


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
    assert lab.wait_for(name, "call_ended", 3.0)["cause"] == "lost"
    assert lab.wait_for(name, "released", 3.0)
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
    assert head.wait(10) == 0
    assert lab.events(name)[0]["event"] == "allocated"
    lab.enter(name, name)
    assert lab.wait_for(name, "released")
    assert lab.head("no-such-run", "--detach").wait(10) != 0


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
    shutil.rmtree(lab.root / "runs")
    assert head.wait(10) == 0
    assert nothing_left(name)


def runs(name):
    return [name, *(f"{name}-{number}" for number in range(3))]


def test_a_missing_package_in_the_environment_is_said(lab, name, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    ended = lab.run(name, adder(), 1, 1, python=str(tmp_path / "bare" / "bin" / "python"))
    assert ended["cause"] == "environment"
    assert "dill" in ended["message"]


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
