"""What a cluster does for home, by name: `perform("files.read", {"path": ..., "offset": 0})`.

On this machine home calls it in its own process; elsewhere `agent.py` calls it for home. An operation is a function
with keyword arguments that JSON can hold, and at most one, called `data`, that is bytes. It gives back bytes, or what
JSON can hold. One that has a parameter `tell` may call it with what JSON can hold, while it works.

Home asks again when an answer was lost with its connection: doing an operation twice must be the same as doing it once.
"""

from __future__ import annotations

import errno
import importlib
import inspect
from typing import Any, Callable, Dict, List

from slurm_ray_flow.remote.errors import OperationError

MODULES = (
    "clean_up",
    "commands",
    "container",
    "environments",
    "files",
    "machines",
    "probe",
    "pythons",
    "queue",
    "room",
    "runs",
    "slurm",
    "snapshots",
    "survey",
    "uv_tool",
    "warm",
    "workplace",
)
"""The modules of this package that hold operations, each in its dictionary `OPERATIONS`."""

Tell = Callable[[Any], None]

_USUAL = "see that it can be read and written"
_ROOM = "make room there (`srf clean` removes what nobody uses), or choose another root for this cluster"
_ADVICE = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM}


def perform(name: str, arguments: Dict[str, Any], tell: Tell = lambda _: None) -> Any:
    """Do one operation.

    Args:
        name: the module and the operation, "files.read".
        arguments: by name.
        tell: gets what the operation says while it works.

    Raises:
        OperationError: it could not.
    """
    operation = _find(name)
    given = {**arguments, "tell": tell} if "tell" in inspect.signature(operation).parameters else arguments
    try:
        return operation(**given)
    except OSError as error:
        path = str(error.filename or arguments.get("path", ""))
        raise OperationError(error.strerror or str(error), path, _ADVICE.get(error.errno or 0, _USUAL)) from error


def perform_all(requests: List[Dict[str, Any]], tell: Tell = lambda _: None) -> List[Any]:
    """Do several operations in order, and stop at the first that can't be done.

    Args:
        requests: a name and the arguments each: `{"name": "files.read", "arguments": {...}}`.
        tell: gets what the operations say.
    """
    return [perform(request["name"], request["arguments"], tell) for request in requests]


def _find(name: str) -> Callable[..., Any]:
    module, _, operation = name.partition(".")
    if module not in MODULES:
        raise OperationError("there is no operation {!r}".format(name))
    found: Dict[str, Callable[..., Any]] = importlib.import_module("slurm_ray_flow.remote." + module).OPERATIONS
    if operation not in found:
        raise OperationError("there is no operation {!r}".format(name))
    return found[operation]
