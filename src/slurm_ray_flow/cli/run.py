"""`srf run`: a function of a file, from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.output import Json, Switch, as_json, describe_error, print_exception, print_json, print_text
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError
from slurm_ray_flow.core.options import is_quantity
from slurm_ray_flow.core.run import is_from_the_cluster


def run(
    function: str,
    *,
    arg: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    option: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    dry_run: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Run a function of a file, decorated or not, and write its value.

    Examples:
        srf run train.py:train

        srf run train.py:train --arg folds=8 --option memory=4G

        srf run train.py:train --option cluster=curnagl --json

        srf run train.py:train --option cluster=curnagl --dry-run

    Args:
        function: The file and the function's name: path/to/file.py:function.
        arg: An argument, NAME=VALUE; the value is read as JSON where it is JSON, else as text. May be given again.
        option: An option of the decorator, NAME=VALUE. May be given again.
        dry_run: Do nothing, and write what would be submitted and sent.
    """
    arguments, options = pairs_of(arg, "--arg"), pairs_of(option, "--option", is_quantity)
    launched = launchable(load(function), options)
    positional, keyword = _cast_arguments(launched, arguments)
    if dry_run:
        _preview(launched, positional, keyword, json)
        return
    try:
        # What the function prints belongs to people; with --json, standard output is for the document alone.
        with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
            value = _await_value(launched(*positional, **keyword))
    except BaseException as error:
        if not (isinstance(error, Exception) or is_from_the_cluster(error)):
            raise
        if json:
            print_json({"error": describe_error(error)})
        if isinstance(error, SlurmRayFlowError):
            raise
        print_exception(error)
        sys.exit(1)
    if json:
        print_json({"value": as_json(value)})
    else:
        print_text(repr(value))


def _await_value(value: Any) -> Any:
    """The value of a function, awaited for an async one."""
    import asyncio

    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _preview(launched: Any, positional: tuple[Any, ...], keyword: dict[str, Any], json: bool) -> None:
    from slurm_ray_flow.interface.session import preview_of

    preview = preview_of(launched, positional, keyword)
    print_json(dataclasses.asdict(preview)) if json else print_text(str(preview).rstrip())


def launchable(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The function with these options, decorated if it is not."""
    from slurm_ray_flow.interface.decorator import slurm_ray_flow
    from slurm_ray_flow.interface.launch_flow import LaunchFlow

    if isinstance(function, LaunchFlow):
        return function.with_options(**options)
    launched: Callable[..., Any] = slurm_ray_flow(**options)(function)
    return launched


def _cast_arguments(launched: Any, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments cast by the function's annotations.

    Raises:
        OptionError: the function does not take such arguments.
    """
    from prefect.exceptions import ParameterTypeError

    signature = inspect.signature(launched.fn)
    try:
        signature.bind(**arguments)
        typed: tuple[tuple[Any, ...], dict[str, Any]] = launched.typed(**arguments)
    except (TypeError, ParameterTypeError) as error:
        what = str(error).removeprefix("Flow run received invalid parameters:\n - ")
        raise OptionError(what, advice=f"the function takes {signature}; write --arg NAME=VALUE") from None
    return typed


def load(where: str) -> Callable[..., Any]:
    """The function that path/to/file.py:function names; its file is imported.

    Raises:
        OptionError: there is no such function, or the file can't be imported.
    """
    path, separator, name = where.rpartition(":")
    file = Path(path).absolute()
    if not separator or file.suffix != ".py":
        raise OptionError(f"{where!r} does not name a function", advice="write path/to/file.py:function")
    if not file.is_file():
        raise OptionError("there is no such file", where=str(file), advice="write path/to/file.py:function")
    module = _import(file)
    loaded: Any = module
    for part in name.split("."):
        loaded = getattr(loaded, part, None)
    if not callable(loaded):
        near = difflib.get_close_matches(name, [key for key in vars(module) if callable(vars(module)[key])], n=1)
        raise OptionError(
            f"there is no function {name!r}", where=str(file), advice=f"did you mean {near[0]!r}?" if near else ""
        )
    return loaded  # type: ignore[no-any-return]


def _import(file: Path) -> Any:
    """Import a file by its whole name, so that a module of a package finds its siblings."""
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        names, folder = [folder.name, *names], folder.parent
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(".".join(names))
    except Exception as error:
        print_exception(_with_user_frames(error), frames=True)
        raise OptionError("the file can't be imported", where=str(file), advice="mend what stands above") from None
    if Path(module.__file__ or "").resolve() != file.resolve():
        raise OptionError(
            f"the name {module.__name__!r} is taken by another module",
            where=str(module.__file__),
            advice=f"give {file.name} another name",
        )
    return module


def _with_user_frames(error: Exception) -> Exception:
    """The error with the frames of the user's file alone."""
    trace = error.__traceback__
    while trace is not None and (
        "importlib" in trace.tb_frame.f_code.co_filename or trace.tb_frame.f_globals is globals()
    ):
        trace = trace.tb_next
    return error.with_traceback(trace)


def pairs_of(texts: tuple[str, ...], option: str, is_text: Callable[[str], bool] = lambda _: False) -> dict[str, Any]:
    """Parse NAME=VALUE texts: a value is read as JSON where it is JSON, unless `is_text` wants its number as text."""
    from json import loads

    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise OptionError(f"{option} {text!r} is not NAME=VALUE", advice=f"write {option} n=3")
        try:
            parsed = loads(value)
        except ValueError:
            parsed = value
        is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
        pairs[name] = value if is_number and parsed and is_text(name) else parsed
    return pairs
