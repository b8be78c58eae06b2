"""What a value is, in one text: the same for the same content, another for any other."""

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import itertools
import pathlib
import pickle
import sys
import threading
import typing

import numpy as np
import pytest

from slurm_ray_flow.core.digest import Undigestible, digest_of


def made(source, name="f", **names):
    """A function or class of a script that holds these names besides."""
    space = {"__name__": "__main__", **names}
    exec(source, space)
    return space[name]


def adds(number):
    return lambda value: value + number


def of_class(body):
    return made(f"class C:\n    {body}", "C")


shared = [1]
NEAR = {
    "numbers": [1, True, 1.0, 1 + 0j, "1", b"1", decimal.Decimal(1), np.float64(1), np.int64(1), np.int32(1)],
    "nothing": [0, 0.0, -0.0, False, None, "", b"", [], (), {}, set(), frozenset(), np.zeros(0)],
    "wrapped": [1, [1], (1,), {1}, frozenset({1}), {1: None}, np.array(1), np.array([1]), np.array([1.0])],
    "texts": ["a", b"a", bytearray(b"a"), memoryview(b"a"), "A", "\ud800"],
    "orders": [{"a": 1, "b": 2}, {"b": 2, "a": 1}, collections.OrderedDict(a=1, b=2), collections.Counter(a=1, b=2)],
    "many": [list(range(999)), tuple(range(999)), [False, True, *range(2, 999)], [*map(float, range(999))]],
    "sets": [{1, "a"}, {True, "a"}, {1.0, "a"}, {("a", 1)}, {("a", True)}, frozenset({1, "a"})],
    "closures": [adds(1), adds(2), adds(True), adds(1.0)],
    "globals": [made("f = lambda: K", K=1), made("f = lambda: K", K=2), made("f = lambda: K"), made("f = lambda: 1")],
    "inner": [made("def f():\n  class A:\n    x = K\n  return A", K=k) for k in (1, 2)],
    "far": [made("def g(): return K\ndef f(): return [g() for _ in (1, 2)]", K=k) for k in (1, 2)],
    "defaults": [made(f"def f(a{rest}): pass") for rest in ("", "=1", "=2", ", *, b=1", ", b=1", ": int")],
    "code": [made(f"def f(a): return a {rest}") for rest in ("+ 1", "- 1", "+ True", "+ 1.0", ".x", ".y")],
    "caught": [made(f"def f():\n  try: g()\n  except {kind}: pass") for kind in ("OSError", "TypeError")],
    "classes": [of_class(f"x = {part}") for part in ("1", "2", "property(len)", "property(id)", "lambda: 1")],
    "kinds": [of_class(f"@{kind}\n    def x(self): pass") for kind in ("staticmethod", "classmethod", "property")],
    "partials": [functools.partial(pow, 1), functools.partial(pow, 2), functools.partial(pow, exp=1), pow],
    "methods": [str.upper, str.lower, "a".upper, "b".upper],
    "moments": [datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc, fold=fold) for fold in (0, 1)],
    "decimals": [decimal.Decimal("1.0"), decimal.Decimal("1.00")],
    "paths": [pathlib.Path("/a"), pathlib.PurePath("/a"), "/a"],
    "shapes": [np.arange(6), np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2), np.arange(6.0)],
    "types": [np.arange(6).astype(kind) for kind in ("i8", ">i8", "u8", "M8[s]", "m8[s]", "M8[D]")],
    "objects": [np.array(parts, dtype=object) for parts in ([1, "1"], ["1", 1], [1, 1], [True, 1])],
    "masked": [np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[0, 0])],
    "one or two": [[shared, shared], [[1], [1]]],
}


@pytest.mark.parametrize("near", NEAR.values(), ids=NEAR)
def test_near_misses_are_told_apart(near):
    digests = [digest_of(value) for value in near]
    assert [
        (near[i], near[j]) for i, j in itertools.combinations(range(len(near)), 2) if digests[i] == digests[j]
    ] == []


def joined(*parts):
    return "".join(parts)


EQUAL = {
    "strings that are one object or two": (["abc", "abc"], [joined("ab", "c"), "abc"]),
    "interned or not": (sys.intern(joined("x", "yz")), joined("x", "yz")),
    "many strings": (list(map(str, range(999))), [sys.intern(str(number)) for number in range(999)]),
    "tuples": ([(1, 2)] * 2, [(1, 2), tuple(map(int, (1, 2)))]),
    "paths": ([pathlib.Path("a")] * 2, [pathlib.Path("a"), pathlib.Path("a")]),
    "closures": (adds(1), adds(1)),
    "lines": (made("f = lambda: K", K=1), made("\n\n# more\nf = lambda: K", K=1)),
    "other globals": (made("f = lambda: K", K=1), made("f = lambda: K", K=1, unused=2)),
    "views": (np.arange(12)[::2], np.arange(12)[::2].copy()),
    "order in memory": (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
    "sets": ({"b", "a"}, {"a", "b"}),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_equal_content_is_the_same(one, other):
    assert digest_of(one) == digest_of(other)


class Alone:
    pass


@pytest.mark.parametrize(
    "value", [threading.Lock(), (n for n in ()), [{1: threading.Lock()}], {Alone()}, adds(threading.Lock())]
)
def test_what_cannot_be_compared_has_none(value):
    with pytest.raises(Undigestible):
        digest_of(value)


def test_what_is_found_by_a_name_that_only_this_process_has_is_not_taken_for_that_name():
    """As for pickle, a name of `__main__` would do; what it stands for would not count."""

    class Hidden:
        def __reduce__(self):
            return "hidden"

    Hidden.__module__ = "__main__"
    with pytest.raises(Undigestible):
        digest_of(Hidden())


def test_it_is_the_same_when_dill_has_been_imported():
    """dill changes what pickle's own class does with locks, functions and dictionaries."""
    importlib.import_module("dill")
    with pytest.raises(Undigestible):
        digest_of([threading.Lock()])
    assert pickle._Pickler.dispatch.get(type(threading.Lock()))


def test_what_holds_itself_has_a_digest():
    nodes = [Alone() for _ in range(50)]
    for node in nodes:
        node.others = nodes
    assert digest_of(nodes) == digest_of(nodes)
    assert digest_of(made("def f(n): return n and f(n - 1)")) != digest_of(made("def f(n): return n and f(n - 2)"))


def test_what_is_shared_again_and_again_is_looked_at_once():
    frozen = dataclasses.make_dataclass("Frozen", ["left", "right"], frozen=True)
    value = pathlib.Path("a")
    for _ in range(60):
        value = frozen(value, value)
    assert digest_of(value)


def test_an_enum_is_its_members():
    colours = [enum.Enum("Colour", names) for names in (["RED"], ["RED", "BLUE"], {"RED": 2})]
    for colour in colours:
        colour.__module__ = "__main__"
    assert len({digest_of(colour.RED) for colour in colours}) == 3


def test_a_type_variable_of_a_script_counts_by_what_it_is():
    one, other = (made(f"import typing\nf = typing.TypeVar('T', bound={bound})") for bound in ("int", "str"))
    assert isinstance(one, typing.TypeVar)
    assert digest_of(one) != digest_of(other)
