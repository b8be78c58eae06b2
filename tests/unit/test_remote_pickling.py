"""What travels by value: functions and classes of modules that the other side can't import by name."""

import importlib.util
import io
import json
import subprocess
import sys

import pytest

from slurm_ray_flow.remote.shared import payload, pickling
from slurm_ray_flow.remote.shared.pickling import importable

MODULE = """
import dataclasses, enum
import pydantic

FACTOR = 3

class Colour(enum.Enum):
    RED = 1
    SCARLET = 1
    BLUE = 2
    def mixed(self):
        return Colour.BLUE

class Planet(enum.Enum):
    EARTH = (5.9, 6.3)
    def __init__(self, mass, radius):
        self.mass = mass

@dataclasses.dataclass
class Point:
    x: int
    def scaled(self):
        return Point(FACTOR * self.x)

class Model(pydantic.BaseModel):
    number: int = 1
    points: list[Point] = []

class Special(Model):
    other: "Model | None" = None

class Trouble(Exception):
    pass

def work(argument):
    assert isinstance(argument, Special) and type(argument.points[0]) is Point
    inside = (Colour.RED.mixed(), Planet.EARTH.mass)
    return [Special(number="7", other=Model()), argument.points[0].scaled(), Colour.SCARLET, Trouble("x"), inside]
"""

DRIVER = """
import sys
from slurm_ray_flow.remote.shared import payload, pickling, rebuilding
rebuilding.become_driver()
function, arguments = (payload.read(path, pickling.load) for path in sys.argv[1:3])
payload.write(sys.argv[3], function(*arguments), pickling.dump_outcome)
"""


@pytest.fixture
def loaded(tmp_path):
    """A module loaded by its path, as Prefect loads a deployment's file."""
    file = tmp_path / "by_path.py"
    file.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("__loaded_by_path__", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def in_a_driver(folder, function, *arguments):
    paths = [str(folder / name) for name in ("function", "arguments", "outcome")]
    payload.write(paths[0], function, pickling.dump)
    payload.write(paths[1], arguments, pickling.dump)
    subprocess.run([sys.executable, "-c", DRIVER, *paths], check=True, timeout=60)
    return payload.read(paths[2], pickling.load)


def test_a_module_that_has_no_name_there_travels_and_its_classes_stay_themselves(loaded, tmp_path):
    argument = loaded.Special(points=[loaded.Point(2)])
    model, point, colour, error, inside = in_a_driver(tmp_path, loaded.work, argument)
    assert type(model) is loaded.Special
    assert type(model.other) is loaded.Model
    assert model.number == 7
    assert point == loaded.Point(6)
    assert colour is loaded.Colour.RED
    assert type(error) is loaded.Trouble
    assert inside == (loaded.Colour.BLUE, 5.9)


def test_local_classes_travel_too(tmp_path):
    import pydantic

    class Local(pydantic.BaseModel):
        number: int

    [back] = in_a_driver(tmp_path, lambda: [Local(number="4").number + 1])
    assert back == 5


def test_a_module_of_the_project_is_the_one_that_lies_there(tmp_path, monkeypatch):
    """Not home's with home's paths and data, laid over it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "of_the_project.py").write_text("import threading\nlines = iter([1])\ndata = [0]\n")
    import of_the_project

    of_the_project.unpicklable = (number for number in range(3))
    of_the_project.data *= 1_000_000
    payload.write(str(tmp_path / "function"), lambda: (of_the_project.__file__, of_the_project.data), pickling.dump)
    assert (tmp_path / "function").stat().st_size < 10_000
    (tmp_path / "there").mkdir()
    (tmp_path / "of_the_project.py").rename(tmp_path / "there" / "of_the_project.py")
    code = (
        "import sys; from slurm_ray_flow.remote.shared import payload, pickling; sys.path.insert(0, sys.argv[2]);"
        "print(payload.read(sys.argv[1], pickling.load)())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "function"), str(tmp_path / "there")]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == str((str(tmp_path / "there" / "of_the_project.py"), [0]))


def test_what_is_importable(loaded, tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "part.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import package.part

    import support  # noqa: F401 - one of the names below

    names = ["json", "posixpath", "math", "numpy.random.mtrand", "importlib._bootstrap", "package.part", "support"]
    assert [name for name in names if not importable(name)] == []
    assert not importable("__main__")
    assert not importable(loaded.__name__)
    assert package.part.x == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "json.py").write_text("")
    monkeypatch.syspath_prepend(str(other))
    assert not importable("json"), "a fresh interpreter finds another file by that name"
    assert json.__file__


@pytest.mark.parametrize(
    "value",
    [list(range(1000)), tuple("ab" * 300), {str(n): n / 3 for n in range(1000)}, set(range(999)), [None, True] * 500],
    ids=lambda value: type(value).__name__,
)
def test_many_plain_elements_come_back_and_stay_one_object(value):
    import io

    file = io.BytesIO()
    pickling.dump([value, value], file, lambda _: True)
    file.seek(0)
    first, second = pickling.load(file, [])
    assert first == value
    assert type(first) is type(value)
    assert first is second


def test_what_is_printed_meanwhile_by_any_thread_is_seen(monkeypatch):
    """dill had taken `sys.stdout` for a while, from all threads."""
    changes = []

    class Watched(type(sys)):
        def __setattr__(self, name, value):
            changes.extend([name] * (name == "stdout"))
            super().__setattr__(name, value)

    def function(number):
        return json.dumps([sys.maxsize for _ in range(number)])

    monkeypatch.setattr(sys, "__class__", Watched, raising=False)
    pickling.dump(function, io.BytesIO(), lambda _: True)
    assert changes == []
