"""Checks of the agent's answers, since the host may be broken, or hostile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slurm_ray_flow.blocks.machine import failure
from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.remote.shared import framing
from slurm_ray_flow.remote.shared.protocol import OperationError

LARGEST_TEXT, LARGEST_DATA = 32 * 1024 * 1024, 256 * 1024 * 1024
"""The largest text and data of an answer, to protect home's memory. Files are read in pieces of a mebibyte."""
_GREETING = {"root": str, "home": str, "user": str, "host": str, "python": str, "version": str, "pid": int}
_ERROR = ("what", "where", "advice", "cause")
_LONGEST = 4096
_RESULTS: dict[str, type | dict[str, type]] = {
    "files.read": bytes,
    **dict.fromkeys(("files.names", "environments.held", "warm.listed"), list),
    "queue.state": {"holders": list, "waiting": list, "slots": int, "free": int},
    "scheduler.query": {"text": str, "error": str},
    "commands.run": {"exit_code": int, "stdout": str},
    "workplace.written": {"folder": str, "files": list},
}
"""The types of results of operations that home uses without a further check."""


def checked_message(read: framing.Read) -> tuple[dict[str, Any], bytes]:
    """Read one message of a bounded size.

    Raises:
        framing.StreamEnded: the channel ended.
        framing.NotAMessage: the data are no message.
    """
    return framing.unpacked(read, LARGEST_TEXT, LARGEST_DATA)


def greeting(hello: Any) -> dict[str, Any]:
    """Check the agent's greeting.

    Raises:
        framing.NotAMessage: it has another form.
    """
    if not isinstance(hello, dict) or any(not _has_type(hello.get(name), kind) for name, kind in _GREETING.items()):
        raise framing.NotAMessage("its greeting is of another shape")
    if not hello["root"].startswith("/") or "\0" in hello["root"]:
        raise framing.NotAMessage(f"its root is {hello['root']!r}")
    return hello


def _has_type(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (not isinstance(value, str) or len(value) <= _LONGEST)


def results(message: dict[str, Any], data: bytes, operations: Sequence[str], label: str, python: str) -> list[Any]:
    """Check the results of operations.

    Args:
        message, data: the message.
        operations: the names of the requested operations.
        label: the user's name for the cluster.
        python: the Python of the agent.

    Raises:
        SlurmRayFlowError: an operation failed.
        ConnectionFailed: the message is no answer to the request.
    """
    if "crash" in message:
        crash = str(message["crash"]).strip()
        raise SlurmRayFlowError(
            f"our program on {label} failed: {(crash.splitlines() or ['it does not say why'])[-1]}",
            where=f"{label}, {python}",
            advice=crash,
        )
    if "error" in message:
        raise failure(_error(message["error"], label), label)
    try:
        answers = framing.results_unpacked(message["results"], data)
    except (KeyError, TypeError) as error:
        raise protocol_failure(label, f"its results are of another shape ({error!r})") from None
    if len(answers) != len(operations):
        raise protocol_failure(label, f"it gave {len(answers)} results for {len(operations)} operations")
    for operation, result in zip(operations, answers, strict=True):
        if not _is_result(result, _RESULTS.get(operation, object)):
            raise protocol_failure(label, f"it answers {operation} in another shape")
    return answers


def _is_result(result: Any, kind: type | dict[str, type]) -> bool:
    if isinstance(kind, type):
        return isinstance(result, kind)
    return isinstance(result, dict) and all(isinstance(result.get(name), wanted) for name, wanted in kind.items())


def checked_tell(tell: Callable[[Any], None], label: str) -> Callable[[Any], None]:
    """A function that passes on messages of a working operation, and raises an error for a wrong form."""

    def passed_on(message: Any) -> None:
        try:
            tell(message)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise protocol_failure(label, f"it tells of its work in another shape ({error!r})") from None

    return passed_on


def _error(fields: Any, label: str) -> OperationError:
    if not isinstance(fields, dict) or any(not isinstance(fields.get(name), str) for name in _ERROR):
        raise protocol_failure(label, "its error is of another shape")
    return OperationError(*(fields[name] for name in _ERROR))


def protocol_failure(label: str, received: str) -> ConnectionFailed:
    """The error for an answer that is malformed, or not from the agent."""
    return ConnectionFailed(
        f"what answers on {label} is not our program: {received}",
        where=label,
        advice=f"see that nothing of ours was changed there; `srf check {label}` says more",
    )
