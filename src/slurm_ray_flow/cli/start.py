"""`srf run`: a function of a file, from the command line."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.output import print_json, print_text
from slurm_ray_flow.core.errors import OptionError

Json = Annotated[bool, Parameter(name="--json", negative="", help="Write JSON.")]


def run(
    function: str,
    *,
    arg: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    option: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    as_json: Json = False,
) -> None:
    """Run a function of a file, decorated or not, and write its value.

    Examples:
        srf run train.py:train --arg folds=8
        srf run train.py:train --option memory=4G --option time_limit=2h

    Args:
        function: The file and the function's name: path/to/file.py:function.
        arg: An argument, NAME=VALUE; the value is read as JSON where it is JSON, else as text. May be given again.
        option: An option of the decorator, NAME=VALUE. May be given again.
    """
    from slurm_ray_flow.interface.decorator import slurm_ray_flow
    from slurm_ray_flow.interface.launch_flow import LaunchFlow

    found = _load(function)
    options = _pairs(option, "--option")
    launched = found.with_options(**options) if isinstance(found, LaunchFlow) else slurm_ray_flow(**options)(found)
    value = launched(**_pairs(arg, "--arg"))
    if as_json:
        print_json({"value": value if _is_json(value) else repr(value)})
    else:
        print_text(repr(value))


def _load(where: str) -> Callable[..., Any]:
    path, separator, name = where.rpartition(":")
    file = Path(path).absolute()
    if not separator or file.suffix != ".py":
        raise OptionError(f"{where!r} does not name a function", advice="write path/to/file.py:function")
    if not file.is_file():
        raise OptionError("there is no such file", where=str(file), advice="write path/to/file.py:function")
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    found: Any = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, [key for key in vars(module) if callable(vars(module)[key])], n=1)
        raise OptionError(
            f"there is no function {name!r}", where=str(file), advice=f"did you mean {near[0]!r}?" if near else ""
        )
    return found  # type: ignore[no-any-return]


def _pairs(given: tuple[str, ...], option: str) -> dict[str, Any]:
    pairs = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise OptionError(f"{option} {text!r} is not NAME=VALUE", advice=f"write {option} n=3")
        try:
            pairs[name] = json.loads(value)
        except ValueError:
            pairs[name] = value
    return pairs


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
