"""The values of a campaign as arguments of its items: any iterable, rows of a DataFrame, lines of a file.

Nothing is held in memory: a value is read when it is stored. The rows of a table are keyword arguments by the names of
their columns. What a file has as text is cast by the function's annotations, as the arguments of `srf run` are.
"""

from __future__ import annotations

import csv
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import TypeAdapter, ValidationError

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.body import bind
from slurm_ray_flow.interface.handle import Producer
from slurm_ray_flow.interface.parameters import cast_by
from slurm_ray_flow.interface.settings import Types

Keywords = dict[str, Any]
LONGEST_SHOWN = 200


class TypedFunction(Protocol):
    """What values need of a decorated function."""

    fn: Any

    @property
    def types(self) -> Any: ...


class Value(NamedTuple):
    """One value of a campaign.

    Attributes:
        place: where it is, for people: "value 7", or a file and its line.
        value: as it was given; the keywords of a row.
        args, kwargs: the arguments of its item.
    """

    place: str
    value: Any
    args: tuple[Any, ...]
    kwargs: Keywords


def is_table(values: Any) -> bool:
    """Whether values are a table: a file's path, or a DataFrame, which is recognized without an import of pandas."""
    return isinstance(values, Path) or _is_frame(values)


def read_values(function: TypedFunction, values: Any, spread: bool) -> Iterator[Value]:
    """The values of a campaign, one by one.

    Args:
        function: its annotations cast what a file has.
        values: an iterable, a DataFrame, or the path of a CSV or JSON-lines file; or what will have one as its value.
        spread: whether a value is all arguments: a tuple by place, a mapping by name.

    Raises:
        OptionError: there is no such file, it is of another kind, or a line of it can't be read; its place is named.
    """
    from slurm_ray_flow.interface.producers import values_at_home  # it imports Prefect

    if issubclass(type(values), Producer):
        values = values_at_home(values)
    if isinstance(values, Path):
        yield from _read_file(function, values)
    elif _is_frame(values):
        yield from _rows_of(values)
    else:
        _check_iterable(values)
        for number, value in enumerate(map(values_at_home, values)):
            yield Value(f"value {number}", value, *_arguments_of(f"value {number}", value, spread))


def checked(function: TypedFunction, values: Iterable[Value], same: Keywords) -> Iterator[Value]:
    """The values, after a look whether the function takes such arguments.

    Raises:
        TypeError: it does not; the error names the value's place.
    """
    shapes: set[tuple[int, tuple[str, ...]]] = set()
    for value in values:
        shape = (len(value.args), tuple(value.kwargs))
        if shape not in shapes:
            try:
                bind(function.fn, value.args, {**same, **value.kwargs})
            except TypeError as error:
                raise TypeError(f"{error} ({value.place})") from None
            shapes.add(shape)
        yield value


def with_distinct_keys(values: Iterable[Value], key: str | Callable[[Any], Any] | None) -> Iterator[Value]:
    """The values, after a look that no two of them have the same key.

    Args:
        values: the values.
        key: gives the key of a value, or names the argument that is the key; None for no key.

    Raises:
        OptionError: two values have the same key, and both places are named; or one has no such argument.
    """
    if key is None:
        yield from values
        return
    places: dict[Any, str] = {}
    for value in values:
        found = _key_of(value, key)
        try:
            earlier = places.setdefault(found, value.place)
        except TypeError:
            what = f"the key of {value.place} is a {type(found).__name__}, which can't be compared with others"
            raise OptionError(what, advice="give a key that is a number, a text, or a tuple of such") from None
        if earlier is not value.place:
            what = f"{earlier} and {value.place} have the same key: {_shown(found)}"
            raise OptionError(what, advice="leave one of them out, or choose another key=")
        yield value


def _key_of(value: Value, key: str | Callable[[Any], Any]) -> Any:
    if callable(key):
        return key(value.value)
    holders = [value.kwargs, value.value if isinstance(value.value, Mapping) else {}]
    for holder in holders:
        if key in holder:
            return holder[key]
    names = ", ".join(map(str, itertools.chain(*holders))) or "none"
    raise OptionError(f"key={key!r} is no column of {value.place}", advice=f"its columns: {names}")


def _arguments_of(place: str, value: Any, spread: bool) -> tuple[tuple[Any, ...], Keywords]:
    if not spread:
        return (value,), {}
    if isinstance(value, Mapping):
        return (), dict(value)
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        what = f"spread=True takes each value as all arguments, and {place} is a {type(value).__name__}"
        raise OptionError(what, where=_shown(value), advice="give tuples or mappings, or leave spread out")
    return tuple(value), {}


def _check_iterable(values: Any) -> None:
    if isinstance(values, Mapping):
        return
    if isinstance(values, str | bytes):
        what = f"the values of a campaign are a {type(values).__name__}, whose items are its letters"
        raise OptionError(what, where=_shown(values), advice='for a file, give pathlib.Path("params.csv")')
    if not isinstance(values, Iterable):
        what = f"a campaign needs values to go over, and {_shown(values)} is a {type(values).__name__}"
        raise OptionError(what, advice="write f.campaign(range(100))")


# ---- DataFrames


def _is_frame(values: Any) -> bool:
    kind = type(values)
    return any(one.__name__ == "DataFrame" and one.__module__.partition(".")[0] == "pandas" for one in kind.__mro__)


def _rows_of(frame: Any) -> Iterator[Value]:
    names = [_column(name) for name in frame.columns]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"the DataFrame has two columns {double!r}", advice="give one of them another name")
    for number, row in enumerate(frame.itertuples(index=False, name=None)):
        keywords = dict(zip(names, row, strict=True))
        yield Value(f"row {number} of the DataFrame", keywords, (), keywords)


def _column(name: Any) -> str:
    if isinstance(name, str):
        return name
    what = f"a column of the DataFrame is called {name!r}, which is no text"
    raise OptionError(what, advice="a row's values are arguments by the names of their columns: rename it")


# ---- files


def _read_file(function: TypedFunction, path: Path) -> Iterator[Value]:
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        advice = "give a .csv with a line of names, or a .jsonl with an object a line"
        what = f"values can't be read from a file that ends with {path.suffix!r}"
        raise OptionError(what, where=str(path), advice=advice)
    casting = _Casting(function)
    try:
        for line, keywords in reader(path, casting):
            yield Value(f"line {line} of {path.name}", keywords, (), keywords)
    except OSError as error:
        raise OptionError(f"the file of values can't be read: {error.strerror or error}", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise OptionError(f"the file of values is not UTF-8: {error}", where=str(path)) from None


def _read_csv(path: Path, casting: _Casting) -> Iterator[tuple[int, Keywords]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            names = next(reader, [])
            if not all(names) or len(set(names)) < len(names):
                advice = "its first line names the arguments, each once"
                what = "a column of the file has no name, or that of another one"
                raise OptionError(what, where=f"{path}:1", advice=advice)
            for cells in reader:
                if len(cells) == len(names):
                    yield reader.line_num, casting.from_texts(dict(zip(names, cells, strict=True)), path, reader)
                elif cells:  # an empty line is none
                    what = f"this line has {len(cells)} values, and the first line {len(names)} names"
                    raise OptionError(what, where=f"{path}:{reader.line_num}")
        except csv.Error as error:
            raise OptionError(f"this is no CSV: {error}", where=f"{path}:{reader.line_num}") from None


def _read_json_lines(path: Path, casting: _Casting) -> Iterator[tuple[int, Keywords]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                keywords = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OptionError(f"this line is no JSON: {error}", where=f"{path}:{number}") from None
            if not isinstance(keywords, dict):
                what = f"this line is a {type(keywords).__name__}, not an object"
                raise OptionError(what, where=f"{path}:{number}", advice='write {"seed": 1}')
            yield number, casting.from_json(keywords, f"{path}:{number}")


class _Casting:
    """Casts values of files by a function's annotations."""

    def __init__(self, function: TypedFunction) -> None:
        self._types: Types = function.types
        parameters = inspect.signature(function.fn).parameters
        self._defaults = {name for name, one in parameters.items() if one.default is not one.empty}

    def from_json(self, keywords: Keywords, place: str) -> Keywords:
        return {name: self._cast(name, [value], place) for name, value in keywords.items()}

    def from_texts(self, row: dict[str, str], path: Path, reader: Any) -> Keywords:
        """The cells of a row. An empty one is the parameter's default, where it has one."""
        place = f"{path}:{reader.line_num}"
        cells = {name: text for name, text in row.items() if text or name not in self._defaults}
        return {name: self._cast(name, self._readings(name, text), place) for name, text in cells.items()}

    def _readings(self, name: str, text: str) -> list[Any]:
        """What a cell may mean, in the order in which its annotation is asked; without one a number is a number."""
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = text or None
        return [text, parsed] if self._types.get(name) else [text if parsed is None else parsed]

    def _cast(self, name: str, readings: list[Any], place: str) -> Any:
        adapter: TypeAdapter[Any] | None = self._types.get(name)
        problem = ""
        for reading in readings:
            try:
                return cast_by(adapter, reading)
            except ValidationError as error:
                problem = problem or "; ".join(detail["msg"] for detail in error.errors())
        raise OptionError(f"{name}={_shown(readings[0])} does not fit: {problem}", where=place)


def _shown(value: Any) -> str:
    try:
        return repr(value)[:LONGEST_SHOWN]
    except Exception:
        return f"a {type(value).__name__}"
