"""A script of everyday patterns: what the decorated call gives is compared with what the plain one gives."""

from __future__ import annotations

import abc
import argparse
import concurrent.futures
import dataclasses
import enum
import functools
import inspect
import multiprocessing
import sys
import threading
import typing
import weakref
import xml.etree.ElementTree
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow

sys.setrecursionlimit(4000)
MISSING = object()
LOCK = threading.Lock()
CALLS = 0
RATE = 1
Seconds = typing.NewType("Seconds", float)
T = typing.TypeVar("T")


class Registered:
    kinds: typing.ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, key: str) -> None:
        Registered.kinds[key] = cls
        cls.key = key


class First(Registered, key="first"):
    def go(self):
        return super().__repr__()[:9] + self.key


class Labelled(type):
    made: typing.ClassVar[list[str]] = []

    def __new__(cls, name, bases, body):
        cls.made.append(name)
        return super().__new__(cls, name, bases, {**body, "tag": body["label"].upper()})


class WithLabel(metaclass=Labelled):
    label = "x"


class Planet(enum.Enum):
    EARTH = (5.9, 6.3)
    MARS = (0.6, 3.4)

    def __new__(cls, mass, radius):
        made = object.__new__(cls)
        made._value_, made.radius = mass, radius
        return made


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    BOTH = READ | WRITE


class Text(str, enum.Enum):
    X = "x"


@dataclasses.dataclass(slots=True)
class Slotted:
    number: int
    more: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Outer:
    inner: Inner

    class Nested:
        depth = 3


@dataclasses.dataclass
class Inner:
    number: int


class Pair(typing.NamedTuple):
    left: int
    right: int = 2

    def total(self):
        return self.left + self.right


class Stack(typing.Generic[T]):
    def __init__(self) -> None:
        self.items: list[T] = []

    def push(self, item: T) -> Stack[T]:
        self.items.append(item)
        return self


class Options(typing.TypedDict, total=False):
    rate: float


@typing.runtime_checkable
class Sized(typing.Protocol):
    def size(self) -> int: ...


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2

    def size(self):
        return 1


class Doubled:
    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        return self if instance is None else vars(instance)[self.name]

    def __set__(self, instance, value):
        vars(instance)[self.name] = value * 2


class WithDescriptor:
    value = Doubled()

    @functools.cached_property
    def answer(self):
        return 42


class Node:
    def __init__(self, parent=None):
        self.parent = weakref.ref(parent) if parent else None
        self.children = []


class Trouble(Exception):
    def __init__(self, name):
        super().__init__(f"bad {name}")


@functools.lru_cache(maxsize=None)
def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)


@functools.singledispatch
def shown(value):
    return "any"


@shown.register
def _(value: int):
    return "int"


@shown.register
def _(value: Square):
    return "square"


def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **named):
        return function(*args, **named)

    return wrapper


@timed
def build_net(number):
    return number + 1


def counter():
    count = 0

    def up():
        nonlocal count
        count += 1
        return count

    return up, lambda: count


UP, COUNT = counter()


def counted(number):
    global CALLS
    CALLS += 1
    return number * number


def square(number):
    return number * number


def deep(number):
    return 0 if number == 0 else 1 + deep(number - 1)


def raised(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__


def processes():
    fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    with fork.Pool(2) as pool, concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as executor:
        return pool.map(square, [1, 2]), list(executor.map(square, [3, 4]))


@slurm_ray_flow(cluster="local")
def everything(marker, planet, node, shape: Shape, view, default=MISSING, wait: Seconds = Seconds(1)):
    WithDescriptor().value = 1
    described = WithDescriptor()
    described.value = 4
    UP()

    class Local:
        calls = RATE

    return {
        "markers": (marker is MISSING, default is MISSING),
        "subclasses": (sorted(Registered.kinds), First().go()[-5:], Registered.kinds["first"] is First),
        "metaclass": (WithLabel.tag, Labelled.made),
        "enums": (
            planet is Planet.MARS,
            Planet(5.9).radius,
            Access.BOTH == Access.READ | Access.WRITE,
            Text("x") is Text.X,
        ),
        "slots": (hasattr(Slotted(1), "__dict__"), Slotted(1).more, dataclasses.replace(Slotted(1), number=2).number),
        "hints": (typing.get_type_hints(Outer)["inner"] is Inner, Outer.Nested.__qualname__, Outer.Nested.depth),
        "tuples": (Pair(1).total(), Pair(1)._asdict(), Pair._field_defaults),
        "generic": (Stack[int]().push(1).items, Stack.__parameters__ == (T,), Options(rate=0.1), Options.__total__),
        "protocol": (isinstance(shape, Sized), isinstance(shape, Square), shape.area(), raised(Shape)),
        "descriptors": (described.value, described.answer),
        "caches": (fibonacci(30), shown(1), shown("x"), shown(Square(1))),
        "looked up": (globals()["build_" + "net"](1), eval("square(3)"), build_net.__wrapped__.__name__),
        "shared": (UP(), COUNT(), counted(2), CALLS, Local.calls),
        "processes": processes(),
        "source": (inspect.getsource(square), inspect.getsource(Inner).splitlines()[1]),
        "program": (sys.argv[1:], Path(sys.argv[0]).name, Path(__file__).name, Path(__file__).exists(), __name__),
        "depth": deep(2000),
        "weak": node.children[0].parent() is node,
        "lock": LOCK.acquire(blocking=False) and LOCK.release(),
        "module": [item.tag for item in xml.etree.ElementTree.fromstring("<r><i/></r>")],
        "view": (view.tolist(), view.format, view.readonly),
        "wait": Seconds(2 * wait),
    }


@slurm_ray_flow(cluster="local")
def brought():
    return [MISSING, Planet.EARTH, Slotted(3), Pair(1), square, Square(2), Trouble("news"), Options(rate=1.0), UP]


def compare():
    root = Node()
    root.children.append(Node(root))
    given = (MISSING, Planet.MARS, root, Square(3), memoryview(bytearray(8)).cast("I"))
    there, here = everything(*given), everything.local(*given)
    for name in here:
        assert there[name] == here[name], (name, there[name], here[name])
    for found, wanted in zip(brought(), brought.local(), strict=True):
        assert type(found) is type(wanted), (found, wanted)
        assert found == wanted or str(found) == str(wanted) or type(found).__name__ in ("Square", "function")
    values = brought()
    assert values[0] is MISSING and values[1] is Planet.EARTH and values[4] is square
    assert (Labelled.made, sorted(Registered.kinds)) == (["WithLabel"], ["first"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int)
    RATE = parser.parse_args().rate
    compare()
    print("the same")
