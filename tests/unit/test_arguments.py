"""Arguments between a call, Prefect's API and the store at home: nothing of this starts a run."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import json
import os
import typing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import get_call_parameters, parameters_to_args_kwargs

from slurm_ray_flow import OptionError, slurm_ray_flow
from slurm_ray_flow.interface.parameters import Arguments, OpaqueValue, holds_future, unwrap

NOT_UTF8 = os.fsdecode(b"mesure-\xe9.csv")
MISSING = object()
ARRAY = numpy.arange(3)


class Point(NamedTuple):
    x: int
    y: int = 0


class Params(typing.TypedDict, total=False):
    rate: float


class Sized(typing.Protocol):
    def size(self) -> int: ...


class Name(str):
    pass


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Pair:
    left: int
    right: float = 2.0


class Odd:
    """Its comparison can't be had."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("it is not to be compared")

    __hash__ = None  # type: ignore[assignment]


class Tensor:
    """Nothing that pydantic knows."""


def sent(function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What the API gets for a call."""
    found = get_call_parameters(function.fn, args, kwargs)
    text = json.dumps(
        function.serialize_parameters({name: OpaqueValue(unwrap(found[name])) for name in found}), allow_nan=False
    )
    assert json.loads(text.encode().decode()) == json.loads(text)
    return dict(json.loads(text))


def again(function: Any, parameters: dict[str, Any]) -> Arguments:
    """What a run gets that Prefect starts with such parameters, as its engine does."""
    args, kwargs = parameters_to_args_kwargs(function.fn, parameters)
    checked = function.validate_parameters(get_call_parameters(function.fn, args, kwargs))
    args, kwargs = parameters_to_args_kwargs(function.fn, checked)
    return Arguments(function.fn, get_call_parameters(function.fn, args, kwargs))


def rerun(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What the function itself gives when a call is started again."""
    found = again(function, sent(function, *args, **kwargs))
    return function.local(*found.args, **found.kwargs)


@slurm_ray_flow
def typed(
    number: int = 0,
    rate: float = 0.0,
    name: str = "",
    on: bool = False,
    several: Sequence[float] = (),
    all_of: Iterable[int] = (),
    one_of: Iterator[int] | None = None,
    counted: collections.Counter[str] | None = None,
    grouped: collections.defaultdict[str, list[int]] | None = None,
    point: Point = Point(0),  # noqa: B008 - as users write
    pair: Pair | None = None,
    place: Path = Path(),
    when: datetime.date | None = None,
    color: Color = Color.RED,
    anything: Any = None,
) -> dict[str, Any]:
    return dict(locals())


EXACT = {
    "a number": {"number": 3},
    "a large number": {"number": 2**70},
    "numpy's number": {"number": numpy.int64(8889891283923431349)},
    "a text for a number": {"number": "3"},
    "numpy's float": {"rate": numpy.float64(0.1)},
    "infinity": {"rate": float("inf")},
    "numpy's text": {"name": numpy.str_("a")},
    "a text of one's own kind": {"name": Name("a")},
    "a name that is not UTF-8": {"name": NOT_UTF8},
    "a text with a zero": {"name": "a\0b"},
    "bytes": {"anything": b"\xff"},
    "a path that is not UTF-8": {"place": Path(NOT_UTF8)},
    "numpy's truth": {"on": numpy.bool_(True)},
    "truth for a number": {"number": True},
    "a list": {"several": [1.0, 2.0], "all_of": [1, 2]},
    "a tuple": {"several": (1.0, 2.0), "all_of": (1, 2)},
    "a set": {"all_of": {1, 2}},
    "a Counter": {"counted": collections.Counter("aab")},
    "a defaultdict": {"grouped": collections.defaultdict(list, a=[1])},
    "an OrderedDict": {"anything": collections.OrderedDict(b=1, a=2)},
    "a dictionary of numbers": {"anything": {1: "a", (2, 3): "b"}},
    "a NamedTuple": {"point": Point(1, 2)},
    "a tuple for a NamedTuple": {"point": (1, 2)},
    "a dataclass": {"pair": Pair(1)},
    "a date": {"when": datetime.date(2020, 1, 1), "color": Color.BLUE, "place": Path("q")},
    "a schema": {"anything": {"$ref": "#/$defs/Node", "properties": {"a": {"$ref": "#/$defs/Leaf"}}}},
    "what Prefect's server would read": {"anything": [{"__prefect_kind": "json", "value": "[1]"}]},
    "what looks like one of ours": {"anything": {"$srf": "0123", "name": "anything", "type": "int"}},
}


@pytest.mark.parametrize("given", EXACT.values(), ids=EXACT.keys())
def test_a_rerun_gets_what_the_call_gave(given: dict[str, Any]) -> None:
    found = rerun(typed, **given)
    assert {name: found[name] for name in given} == given
    assert {name: type(found[name]) for name in given} == {name: type(given[name]) for name in given}


def test_what_is_not_a_number_stays_so() -> None:
    assert str(rerun(typed, rate=float("nan"))["rate"]) == "nan"


def test_an_iterator_is_not_read_on_the_way() -> None:
    values = iter([1, 2, 3])
    parameters = sent(typed, one_of=values)
    assert list(values) == [1, 2, 3]
    assert list(again(typed, parameters).parameters["one_of"]) == [1, 2, 3]


@slurm_ray_flow
def free(first: Any, second: Any = None) -> Any:
    return first, second


def test_one_object_given_twice_stays_one() -> None:
    first, second = rerun(free, *[numpy.arange(3)] * 2)
    assert first is second


@pytest.mark.parametrize("value", [numpy.arange(3), [numpy.arange(2)] * 2, {"a": numpy.arange(2)}])
def test_what_compares_to_arrays_travels(value: Any) -> None:
    assert repr(rerun(free, value)[0]) == repr(value)


def test_what_cannot_be_compared_travels_for_each_annotation() -> None:
    assert type(rerun(free, Odd())[0]) is Odd
    assert type(rerun(typed, pair=Odd())["pair"]) is Odd


@pytest.mark.parametrize("value", [1, 0.5, None, True, "é", [1, [2]], {"a": {"b": 1.5}}])
def test_small_plain_data_is_shown_as_it_is(value: Any) -> None:
    assert sent(free, value)["first"] == value


def test_what_is_typed_is_shown_as_json() -> None:
    given = {"pair": Pair(1), "when": datetime.date(2020, 1, 1), "color": Color.BLUE, "place": Path("q"), "rate": 1}
    wanted = {"pair": {"left": 1, "right": 2.0}, "when": "2020-01-01", "color": "blue", "place": "q", "rate": 1}
    assert {name: found for name, found in sent(typed, **given).items() if name in given} == wanted


def test_the_request_stays_small() -> None:
    @slurm_ray_flow
    def wide(**named: str) -> int:
        return sum(map(len, named.values()))

    @slurm_ray_flow
    def many(*texts: str) -> int:
        return sum(map(len, texts))

    texts = {f"name_{number}": "x" * 15_000 for number in range(50)}
    assert len(json.dumps(sent(wide, **texts))) < 1_000
    assert rerun(wide, **texts) == rerun(many, *texts.values()) == 750_000
    namespace: dict[str, Any] = {}
    exec(f"def f({', '.join(texts)}): return {' + '.join(map('len({})'.format, texts))}", namespace)
    several = slurm_ray_flow(namespace["f"])
    assert len(json.dumps(sent(several, **texts))) < 200_000
    assert rerun(several, **texts) == 750_000


def shape(first: Any, /, second: Any = 2, *many: Any, key: Any = MISSING, **named: Any) -> Any:
    return first, second, many, key is MISSING, named


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1,), {}),
        ((1, 2, 3, 4), {"key": 5, "six": 6}),
        (([1], {2}, {3}, NOT_UTF8), {"key": None, "six": {6}, "first": b"1"}),
        ((1,), {"second": numpy.int8(3), "name": "n", "type": "t"}),
    ],
)
def test_each_kind_of_parameter_comes_again(args: Any, kwargs: Any) -> None:
    assert rerun(slurm_ray_flow(shape), *args, **kwargs) == shape(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"second": 1}), ((1,), {"a": 1, "key": 2})]
)
def test_a_call_that_does_not_fit_is_the_plain_error_before_anything_starts(args: Any, kwargs: Any) -> None:
    def plain(first: int, *, key: int = 0) -> None: ...

    decorated = slurm_ray_flow(plain)
    with pytest.raises(TypeError) as wanted:
        plain(*args, **kwargs)
    for call in (decorated, decorated.submit, decorated.local):
        with pytest.raises(TypeError) as caught:
            call(*args, **kwargs)
        assert (type(caught.value), str(caught.value)) == (TypeError, str(wanted.value))


def test_a_default_that_is_a_mark_is_left_to_the_function() -> None:
    @slurm_ray_flow
    def marked(first: Any = MISSING, /, second: Any = ARRAY, *, third: Any = MISSING) -> Any:
        return first is MISSING, second, third is MISSING

    assert sent(marked) == {}
    assert again(marked, {}).args == ()
    assert again(marked, {}).kwargs == {}
    assert rerun(marked, third=3)[::2] == (True, False)
    assert rerun(marked, 1)[::2] == (False, True)


def test_a_default_that_is_a_plain_value_is_the_one_of_home() -> None:
    @slurm_ray_flow
    def dated(
        first: Any, /, when: datetime.date = datetime.date(2020, 1, 1), size: Any = 5, mark: Any = MISSING
    ) -> Any:
        return when, size, mark is MISSING

    given = again(dated, sent(dated, 1))
    assert given.parameters == {"first": 1, "when": datetime.date(2020, 1, 1), "size": 5}
    assert rerun(dated, 1, size=6) == (datetime.date(2020, 1, 1), 6, True)


def test_arguments_stay_as_they_were_given_for_a_wrapper_that_looks_at_them() -> None:
    @functools.wraps(typed.function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    found = Arguments(slurm_ray_flow(wrapper).fn, {"number": 1, "rate": 2.0}, ((1,), {"rate": 2.0}))
    assert wrapper(*found.args, **found.kwargs) == ((1,), {"rate": 2.0})


def test_what_comes_from_the_api_is_cast() -> None:
    given = {"number": "3", "rate": 1, "several": [1], "all_of": ["1", 2], "pair": {"left": "1"}, "point": [1, 2]}
    found = again(typed, {**given, "when": "2020-01-01", "color": "blue", "counted": {"a": 1}}).parameters
    assert (found["number"], found["rate"], found["all_of"], found["point"]) == (3, 1.0, [1, 2], Point(1, 2))
    assert (found["pair"], found["when"], found["color"]) == (Pair(1), datetime.date(2020, 1, 1), Color.BLUE)
    assert type(found["counted"]) is collections.Counter
    assert type(found["rate"]) is float


def test_what_the_api_can_not_mean_is_an_error_that_names_all_of_it() -> None:
    with pytest.raises(ParameterTypeError, match=r"(?s)number: .*pair\.left: "):
        again(typed, {"number": "many", "pair": {"left": "x"}})
    assert again(free, {"first": {"$ref": "#/$defs/a"}}).parameters["first"] == {"$ref": "#/$defs/a"}


def test_arguments_that_people_write_are_cast() -> None:
    assert typed.typed(number="3")[0][0] == 3
    assert slurm_ray_flow(shape).typed("1", key="x", other=2) == (("1",), {"key": "x", "other": 2})


def test_names_and_annotations_of_all_kinds_are_taken_without_a_word() -> None:
    def odd(
        json: int, copy: Any, schema: Any, validate: Any, construct: Any, keys: Any, model_config: dict[str, int],
        a: Params, b: Sized, c: Nowhere, d: Tensor, e: list[Tensor], g: Later,  # type: ignore[name-defined] # noqa: F821
        model_fields: int = 2, model_validate_x: int = 1, v__args: int = 1, self_: Any = 1,
        _hidden: Any = 5, _other: Any = 6,
    ) -> list[Any]:  # fmt: skip
        return list(locals().values())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decorated = slurm_ray_flow(odd)
        changed = decorated.with_options(memory="1G", description="said")
        values = [*range(6), {"layers": 3}, {"rate": 1.0}, *[Tensor] * 5]
        for one in (decorated, changed):
            assert rerun(one, *values) == [*values, 2, 1, 1, 1, 5, 6]
            assert rerun(one, *values, _hidden=7)[-2:] == [7, 6]
    shown = decorated.parameters.properties
    assert (shown["json"]["type"], shown["model_config"]["type"], shown["model_fields"]["type"]) == (
        "integer", "object", "integer",
    )  # fmt: skip
    assert "_hidden" not in shown
    assert decorated.parameters.required == list(shown)[:13]


def test_an_annotation_of_what_the_file_defines_later_casts_all_the_same() -> None:
    namespace: dict[str, Any] = {"__name__": "later"}
    exec("def f(x: 'Later', y: 'int' = 1): return x", namespace)
    decorated = slurm_ray_flow(namespace["f"])
    assert decorated.parameters.properties["y"]["type"] == "integer"
    namespace["Later"] = Pair
    assert again(decorated, {"x": {"left": "1"}}).parameters["x"] == Pair(1)


@pytest.mark.parametrize("name", ["return_state", "wait_for"])
def test_what_prefect_takes_for_itself_is_refused_at_the_decoration(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def f({name}=None): ...", namespace)
    with pytest.raises(OptionError, match=name):
        slurm_ray_flow(namespace["f"])


def test_only_what_prefect_resolves_waits() -> None:
    from prefect.futures import PrefectFuture
    from prefect.states import Completed
    from prefect.utilities.annotations import quote

    class Future(PrefectFuture[Any]):
        def wait(self, timeout: float | None = None) -> None: ...
        def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any: ...
        def add_done_callback(self, fn: Any) -> None: ...

    future: Any = Future.__new__(Future)
    assert all(map(holds_future, [future, [1, {"a": (future,)}], Completed(), quote(1)]))
    endless: list[Any] = [1]
    endless.append(endless)
    for _ in range(10_000):
        endless = [endless]
    assert not any(map(holds_future, [endless, (part for part in [future]), Odd(), numpy.arange(3), "text", {1: [2]}]))
    assert sent(free, future)["first"]["$srf"] == ""
