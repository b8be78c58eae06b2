"""The package `slurm_ray_flow` inside a run: this file is its `__init__.py` there.

A module with decorated functions can import it as at home, without Prefect and in milliseconds. The decorator does not
change the function: inside a run, a call runs it in the same process.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable

from slurm_ray_flow.remote.driver.checkpoints import checkpoint
from slurm_ray_flow.remote.shared.end_warning import EndWarning, on_warning

__version__ = "0.1.0"
__all__ = ["EndWarning", "SlurmRayFlowError", "checkpoint", "on_warning", "slurm_ray_flow"]


class SlurmRayFlowError(Exception):
    """Base of all errors of this package."""


def slurm_ray_flow(function: Any = None, **options: Any) -> Any:
    """Decorate a function, with or without options; inside a run it stays the plain function."""
    if function is None:
        return lambda decorated: slurm_ray_flow(decorated, **options)
    with contextlib.suppress(AttributeError, TypeError):  # a builtin takes no attributes
        _add_methods(function)
    return function


def _add_methods(function: Any) -> None:
    function.local = function
    name = getattr(function, "__qualname__", "the function")
    function.submit, function.map = _refuse_in_run(name + ".submit"), _refuse_in_run(name + ".map")
    function.with_options = lambda **_: function


def _refuse_in_run(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise SlurmRayFlowError(
            "`{}` can't be used inside a run: a run can't start another one yet.\n"
            "  try:   call the function itself, which runs it in place, or use Ray's tasks".format(name)
        )

    return refuse


class _Placeholder(type):
    """The type of names that work only at home: inside a run they can be imported, but not used."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return _refuse_in_run(cls.__name__)()

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _refuse_in_run("{}.{}".format(cls.__name__, name))


class _Cluster:
    """What a module makes or loads beside its functions, such as a cluster's block: inside a run it can't be used."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Any:
        """A saved block."""
        return cls()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _refuse_in_run("{}.{}".format(type(self).__name__, name))


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
    if name in _CLUSTERS or name in _ERRORS:
        base = _Cluster if name in _CLUSTERS else SlurmRayFlowError
        kind: Any = type(name, (base,), {"__module__": __name__})
    else:
        kind = _Placeholder(name, (), {})
    setattr(sys.modules[__name__], name, kind)
    return kind


_CLUSTERS = {"ClusterTaskRunner", "LocalMachine", "OarCluster", "SlurmCluster", "SshConnection", "SshServer"}
_ERRORS = {
    "OptionError", "ScanError", "DependencyError", "SyncError", "PayloadError", "UnknownRunError", "ServerError",
    "RunError", "OutOfMemory", "TimeLimit", "Preempted", "NodeFailed", "EnvironmentFailed", "Rejected",
    "ConnectionFailed", "HostKeyFailed", "LogInFailed", "LockFailed", "Cancelled", "Lost", "Crashed", "ResultError",
}  # fmt: skip
