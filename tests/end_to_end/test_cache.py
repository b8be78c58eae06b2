"""`cache=`: a value that another process, on another day, finds again; and what it must not find."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import abc, collections, dataclasses, enum, functools, pathlib, typing
from slurm_ray_flow.core.digest import digest_of

class Colour(enum.Enum):
    RED, BLUE = 1, 2
class Flags(enum.IntFlag):
    A, B = 1, 2
@dataclasses.dataclass
class Config:
    names: set = dataclasses.field(default_factory=set)
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    number: int = 1
Frozen.ORIGIN = Frozen(0)
class Named(typing.NamedTuple):
    x: int = 1
class Base(abc.ABC):
    @abc.abstractmethod
    def colour(self): return Colour.RED, FACTOR
    @functools.cached_property
    def cached(self): return 1
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    def get(self): return super().__repr__(), __class__
Point, Id, FACTOR = collections.namedtuple("Point", "x y"), typing.NewType("Id", int), 3
@functools.lru_cache
def remembered(n): return n * FACTOR
@functools.singledispatch
def shown(value): return value
@shown.register
def _(value: int): return FACTOR
shown(1)
def recursive(n: Id) -> "Box": return n and recursive(n - 1) + remembered(n) + shown(n)
texts = {"alpha", "beta", "gamma", "delta"}
for value in (texts, frozenset(texts), {"a": texts}, Config(texts), Config, Frozen(), {Frozen(1), Frozen(2)}, Frozen,
              Colour.RED, Colour, {Colour.RED, Colour.BLUE}, Flags.A | Flags.B, Named(), Named, Base, Box, Box[int],
              Point(1, 2), recursive, remembered, shown, functools.partial(recursive, texts), lambda x: x in texts,
              {pathlib.Path("a"), pathlib.Path("b")}, {("a", 1), ("b", 2)}, {Colour: 1, int: {len, str}}):
    print(digest_of(value))
"""


def test_other_processes_find_the_same(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    said = {
        subprocess.run(
            [sys.executable, tmp_path / "script.py"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "0123"
    }
    [lines] = said
    assert len(set(lines.split())) == 26


ONCE = """
import sys
from slurm_ray_flow import slurm_ray_flow

SCALE, OFFSET, LIMIT, WEIGHTS, NAMES = 3.0, 2.0, 10, (1, 2, 3), {"alpha", "beta", "gamma"}

def scaled(number):
    return SCALE * number + OFFSET

@slurm_ray_flow(cluster="local", cache="1h")
def expensive(mark, number, names=frozenset({"delta", "epsilon"})):
    with open(mark, "a") as file:
        file.write("ran\\n")
    return sum(scaled(each) for each in range(min(number, LIMIT))) + sum(WEIGHTS) + len(NAMES | names)

if __name__ == "__main__":
    if sys.argv[2] == "otherwise":
        OFFSET = 3.0
    print("value", expensive(sys.argv[1], 4))
"""


@pytest.mark.server
def test_a_value_is_found_by_other_processes_until_what_it_depends_on_changes(script, tmp_path, monkeypatch):
    mark, said = tmp_path / "mark", []
    for seed in "01":
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        said.append(script(ONCE, mark, "as it is").stdout)
    assert said == ["value 37.0\n"] * 2
    assert mark.read_text() == "ran\n"
    assert script(ONCE, mark, "otherwise").stdout == "value 41.0\n"
    assert script(ONCE.replace("return SCALE *", "return 2 * SCALE *"), mark, "as it is").stdout == "value 55.0\n"
    assert mark.read_text() == "ran\n" * 3


@pytest.mark.server
def test_what_cannot_be_compared_is_not_remembered_and_said(script, tmp_path):
    text = """
from slurm_ray_flow import slurm_ray_flow

class Alone:
    pass

@slurm_ray_flow(cluster="local", cache=True)
def drawn(things):
    import time
    return time.time()

things = {Alone()}
print(drawn(things) != drawn(things))
"""
    found = script(text)
    assert found.stdout == "True\n", found.stderr
