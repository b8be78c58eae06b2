"""The values of a campaign: iterables, DataFrames, files; and keys that no two of them share."""

import sys
import types

import pytest

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.campaign_values import checked, read_values, with_distinct_keys
from slurm_ray_flow.interface.settings import typed_signature, types_of


class Function:
    """What values need of a decorated function."""

    def __init__(self, fn):
        self.fn, self.types = fn, types_of(typed_signature(fn))


@Function
def train(seed: int, rate: float = 0.1, name: str = "x", deep: bool = False, sizes: list[int] | None = None): ...


@Function
def untyped(a, b="no"): ...


def arguments(function, values, spread=False):
    return [(value.args, value.kwargs) for value in read_values(function, values, spread)]


def written(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return path


def test_any_iterable_gives_one_argument_or_all_of_them():
    assert arguments(untyped, (number for number in range(2))) == [((0,), {}), ((1,), {})]
    assert arguments(untyped, [(1, 2), {"b": 3}], spread=True) == [((1, 2), {}), ((), {"b": 3})]
    assert arguments(untyped, [{"b": 3}]) == [(({"b": 3},), {})]


@pytest.mark.parametrize(("values", "spread"), [("text", False), (7, False), (["text"], True), ([7], True)])
def test_what_can_be_no_values_is_told(values, spread):
    with pytest.raises(OptionError):
        arguments(untyped, values, spread)


def test_cells_are_cast_by_annotations(tmp_path):
    path = written(
        tmp_path, "p.csv", 'seed,rate,name,deep,sizes\n007,1e-3,007,true,"[1, 2]"\n8,,"a\nb",,\n\n', "utf-8-sig"
    )
    assert arguments(train, path) == [
        ((), {"seed": 7, "rate": 0.001, "name": "007", "deep": True, "sizes": [1, 2]}),
        ((), {"seed": 8, "name": "a\nb"}),
    ]


def test_without_an_annotation_numbers_are_numbers(tmp_path):
    path = written(tmp_path, "p.csv", "a,b\n7,007\n1.5,\ntrue,x y\n,null\n")
    assert [kwargs for _, kwargs in arguments(untyped, path)] == [
        {"a": 7, "b": "007"},
        {"a": 1.5},
        {"a": True, "b": "x y"},
        {"a": "", "b": "null"},
    ]


def test_objects_a_line_are_cast_too(tmp_path):
    path = written(tmp_path, "p.jsonl", '{"seed": "7", "sizes": [1]}\n\n{"seed": 8, "rate": 1}\n')
    assert arguments(train, path) == [((), {"seed": 7, "sizes": [1]}), ((), {"seed": 8, "rate": 1.0})]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "seed\n1\nx\n", "p.csv:3"),
        ("p.csv", "seed,rate\n1\n", "p.csv:2"),
        ("p.csv", "seed,seed\n1,2\n", "p.csv:1"),
        ("p.csv", 'seed\n"1\n', "no CSV"),
        ("p.jsonl", '{"seed": 1}\n[1]\n', "p.jsonl:2"),
        ("p.jsonl", '{"seed": 1\n', "p.jsonl:1"),
        ("p.jsonl", '{"seed": "x"}\n', "p.jsonl:1"),
        ("p.txt", "1\n", "'.txt'"),
    ],
)
def test_a_line_that_can_not_be_meant_is_named(tmp_path, name, text, said):
    with pytest.raises(OptionError, match=said):
        arguments(train, written(tmp_path, name, text))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(OptionError, match="No such file"):
        arguments(train, tmp_path / "p.csv")
    (tmp_path / "q.csv").write_bytes(b"seed\n\xff\n")
    with pytest.raises(OptionError, match="UTF-8"):
        arguments(train, tmp_path / "q.csv")


def test_what_the_function_does_not_take_is_named_with_its_place(tmp_path):
    values = written(tmp_path, "p.csv", "seed,what\n1,2\n")
    with pytest.raises(TypeError, match=r"what.*line 2 of p\.csv"):
        list(checked(train, read_values(train, values, False), {}))
    with pytest.raises(TypeError, match="value 1"):
        list(checked(train, read_values(train, [(1,), ()], True), {}))
    with pytest.raises(TypeError, match="seed"):
        list(checked(train, read_values(train, [3], False), {"seed": 1}))
    assert len(list(checked(train, read_values(train, [{"seed": 1, "rate": 2}], True), {"rate": 1}))) == 1


def test_each_row_of_a_frame_is_keywords(monkeypatch):
    class DataFrame:
        """A fake of pandas' class: what is used of it."""

        columns = ("seed", "rate")

        def itertuples(self, index, name):
            assert (index, name) == (False, None)
            return iter([(1, 0.5), (2, 0.25)])

    DataFrame.__module__ = "pandas.core.frame"
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    assert arguments(train, DataFrame()) == [((), {"seed": 1, "rate": 0.5}), ((), {"seed": 2, "rate": 0.25})]
    DataFrame.columns = ("seed", 7)
    with pytest.raises(OptionError, match="7"):
        arguments(train, DataFrame())


def test_a_real_frame_gives_plain_numbers():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"seed": [1, 2], "name": ["a", "b"]})
    found = arguments(train, frame)
    assert found == [((), {"seed": 1, "name": "a"}), ((), {"seed": 2, "name": "b"})]
    assert type(found[0][1]["seed"]) is int


def test_two_values_of_one_key_are_both_named(tmp_path):
    path = written(tmp_path, "p.csv", "seed,rate\n1,1\n2,1\n1,2\n")
    with pytest.raises(OptionError, match=r"line 2 of p\.csv and line 4 of p\.csv have the same key: 1"):
        list(with_distinct_keys(read_values(train, path, False), "seed"))
    assert len(list(with_distinct_keys(read_values(train, path, False), lambda row: (row["seed"], row["rate"])))) == 3
    assert len(list(with_distinct_keys(read_values(train, path, False), None))) == 3
    with pytest.raises(OptionError, match="no column"):
        list(with_distinct_keys(read_values(train, path, False), "sedd"))
    with pytest.raises(OptionError, match="can't be compared"):
        list(with_distinct_keys(read_values(train, path, False), lambda row: row))
    with pytest.raises(OptionError, match="value 0 and value 2"):
        list(with_distinct_keys(read_values(untyped, [{"a": 1}, {"a": 2}, {"a": 1}], False), "a"))


def test_values_are_read_one_by_one():
    taken = []
    values = read_values(untyped, (taken.append(number) or number for number in range(10)), False)
    next(values)
    assert len(taken) == 1
