"""The body of a decorated function's flow: the function that Prefect's engine calls."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any

from prefect.utilities.hashing import file_hash

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.parameters import wrap_default
from slurm_ray_flow.interface.settings import typed_signature, underlying

PREFECT_PARAMETERS = {"return_state", "wait_for"}
"""The names of keyword arguments that Prefect takes from each call of a flow."""

Run = Callable[[tuple[Any, ...], dict[str, Any]], Any]
RunAsync = Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


def name_of(function: Callable[..., Any]) -> str:
    """The flow's name in Prefect."""
    name = getattr(underlying(function), "__name__", type(function).__name__)
    return type(function).__name__ if name == "__call__" else name.replace("<lambda>", "lambda").replace("_", "-")


def body_of(function: Callable[..., Any], run: Run, run_async: RunAsync) -> Callable[..., Any]:
    """The body of a flow, with the signature and the globals of the user's function.

    Prefect resolves annotations in the globals of the flow's function; a `functools.wraps` wrapper would have ours.

    Args:
        function: the user's function.
        run, run_async: launch a call from its positional and keyword arguments; `run_async` is for an `async def`.

    Raises:
        OptionError: Prefect can't take a function with such parameters.
    """
    plain = underlying(function)

    def sync_body(*args: Any, **kwargs: Any) -> Any:
        return run(args, kwargs)

    async def async_body(*args: Any, **kwargs: Any) -> Any:
        return await run_async(args, kwargs)

    source = async_body if inspect.iscoroutinefunction(plain) else sync_body
    body = FunctionType(source.__code__, getattr(plain, "__globals__", {}), source.__name__, None, source.__closure__)
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(body, name, getattr(plain, name, getattr(body, name)))
    body.__signature__ = _signature(function)  # type: ignore[attr-defined]
    body.__annotations__ = dict(getattr(plain, "__annotations__", {}))
    return body


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        signature = typed_signature(function)
    except ValueError:
        raise OptionError(f"{function!r} has no signature", advice="wrap it in a function of your own") from None
    if reserved := sorted(PREFECT_PARAMETERS.intersection(signature.parameters)):
        raise OptionError(f"Prefect takes no parameter that is called {reserved[0]!r}", advice="give it another name")
    parameters = signature.parameters.values()
    return signature.replace(parameters=[one.replace(default=wrap_default(one.default)) for one in parameters])


def bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a call's arguments, by calling a function of the same signature that does nothing.

    Raises:
        TypeError: the function does not take such arguments; the error is that of a plain call.
    """
    __tracebackhide__ = True
    bare_parameters = [
        one.replace(annotation=one.empty, default=one.empty if one.default is one.empty else None)
        for one in inspect.signature(function).parameters.values()
    ]
    scope: dict[str, Any] = {}
    exec(f"def twin{inspect.Signature(bare_parameters)}: pass", scope)  # noqa: S102 - the names of parameters, and nothing else
    scope["twin"].__qualname__ = function.__qualname__
    scope["twin"](*args, **kwargs)


def version_of(plain: Any) -> str | None:
    """The digest of the user's file. Prefect by itself would digest a file of this package."""
    with contextlib.suppress(TypeError, OSError):
        file = inspect.getsourcefile(plain)
        return file_hash(file) if file else None
    return None


def entrypoint_of(plain: Any, fallback: str | None) -> str | None:
    """The entrypoint of a deployment, in the user's file. Prefect by itself would name a file of this package."""
    module = getattr(plain, "__module__", None)
    if module == "__main__" or (module or "").startswith("__prefect_loader_"):
        with contextlib.suppress(TypeError, OSError):
            return f"{inspect.getfile(plain)}:{plain.__qualname__}"
    return f"{module}:{plain.__qualname__}" if module else fallback
