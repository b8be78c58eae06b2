"""Real heads on temporary roots: what comes home from a function."""

import subprocess
import sys
from pathlib import Path

import pytest

import remote_lab
from remote_lab import adder, nothing_left
from support import python_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cluster side is Linux")
TESTS = Path(remote_lab.__file__).parent


def test_a_value_comes_home_with_its_digest(lab, name):
    ended = lab.run(name, adder(), 1, 2)
    assert (ended["outcome"], ended["cause"]) == ("value", None)
    assert lab.outcome(name, ended) == {"value": 3}
    assert [e["event"] for e in lab.events(name)] == ["allocated", "call_started", "call_ended", "released"]
    assert nothing_left(name)


def test_the_head_runs_on_an_old_python(lab, name):
    lab.lay(name, adder(), 1, 2)
    lab.enter(name, name)
    lab.head(name, python=python_of("3.9"))
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
    script.write_text(SCRIPT.format(helpers=str(TESTS), root=str(lab.root), name=name))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.strip() == "all well", done.stderr


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


def test_a_missing_package_in_the_environment_is_said(lab, name, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    ended = lab.run(name, adder(), 1, 1, python=str(tmp_path / "bare" / "bin" / "python"))
    assert ended["cause"] == "environment"
    assert "cloudpickle" in ended["message"]
