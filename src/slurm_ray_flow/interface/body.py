"""The function that Prefect's engine calls for a decorated one, and what Prefect asks of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable
from types import FunctionType, MethodType
from typing import Any

from prefect.utilities.hashing import file_hash

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.parameters import hold_default

OF_PREFECT = {"return_state", "wait_for"}
"""The arguments that Prefect takes for itself."""

Run = Callable[[tuple[Any, ...], dict[str, Any]], Any]
RunAsync = Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


def underlying(function: Callable[..., Any]) -> Any:
    """The function whose source and globals count: a partial's, a method's, a callable object's."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif not isinstance(function, FunctionType) and isinstance(type(function).__call__, FunctionType):
            function = type(function).__call__
        else:
            return function


def name_of(function: Callable[..., Any]) -> str:
    """What to call it in Prefect."""
    name = getattr(underlying(function), "__name__", type(function).__name__)
    return type(function).__name__ if name == "__call__" else name.replace("<lambda>", "lambda").replace("_", "-")


def body_of(function: Callable[..., Any], run: Run, run_async: RunAsync) -> Callable[..., Any]:
    """The function that Prefect's engine calls, with the signature and the globals of the user's own.

    Prefect resolves annotations in the globals of the flow's function; a `functools.wraps` wrapper would have ours.

    Args:
        function: the user's.
        run, run_async: launches a call from its positional and keyword arguments; one is for an `async def`.

    Raises:
        OptionError: Prefect can't take a function with such parameters.
    """
    plain = underlying(function)

    def sync_body(*args: Any, **kwargs: Any) -> Any:
        return run(args, kwargs)

    async def async_body(*args: Any, **kwargs: Any) -> Any:
        return await run_async(args, kwargs)

    source = async_body if inspect.iscoroutinefunction(plain) else sync_body
    made = FunctionType(source.__code__, getattr(plain, "__globals__", {}), source.__name__, None, source.__closure__)
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(made, name, getattr(plain, name, getattr(made, name)))
    made.__signature__ = _signature(function)  # type: ignore[attr-defined]
    made.__annotations__ = dict(getattr(plain, "__annotations__", {}))
    return made


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        found = inspect.signature(function, eval_str=True)
    except (NameError, TypeError):
        found = inspect.signature(function)
    except ValueError:
        raise OptionError(f"{function!r} has no signature", advice="wrap it in a function of your own") from None
    for name in found.parameters:
        if name.startswith("_") or name in OF_PREFECT:
            raise OptionError(f"Prefect takes no parameter that is called {name!r}", advice="give it another name")
    given = (found_one.replace(default=hold_default(found_one.default)) for found_one in found.parameters.values())
    return found.replace(parameters=list(given))


def version_of(plain: Any) -> str | None:
    """A digest of the user's file; Prefect would take ours."""
    with contextlib.suppress(TypeError, OSError):
        file = inspect.getsourcefile(plain)
        return file_hash(file) if file else None
    return None


def entrypoint_of(plain: Any, fallback: str | None) -> str | None:
    """Prefect takes the file of the body, which is ours; the user's is what a deployment must load."""
    module = getattr(plain, "__module__", None)
    if module == "__main__" or (module or "").startswith("__prefect_loader_"):
        with contextlib.suppress(TypeError, OSError):
            return f"{inspect.getfile(plain)}:{plain.__qualname__}"
    return f"{module}:{plain.__qualname__}" if module else fallback
