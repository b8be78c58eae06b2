"""The protocol of home and cluster: errors, the names of a run's files, and the format of its events."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union


class OperationError(Exception):
    """An operation failed for a reason that a person can remedy.

    Args:
        what: the failure in one sentence.
        where: the path or process that it concerns.
        advice: what the person can try.
        cause: one of the causes of a run's end ("lock", "environment", ...), or "" for none.
    """

    def __init__(self, what: str, where: str = "", advice: str = "", cause: str = "") -> None:
        super().__init__(what, where, advice, cause)
        self.what, self.where, self.advice, self.cause = what, where, advice, cause


FILES = {
    "spec": "spec.json", "script": "run.sh", "function": "function.dill", "arguments": "arguments.dill",
    "events": "events.jsonl", "log": "log.txt", "head_log": "head.log", "outcome": "outcome.dill",
    "inbox": "inbox", "cancel": "cancel", "reserve": "reserve", "warning": "warning.json",
    "dashboard": "dashboard.json", "items": "items", "values": "values",
}  # fmt: skip
"""The names of the files in a run's folder, at home and on the cluster."""
TAKEN = ".running"
"""The suffix of an inbox entry whose call runs, and of a bundle of items that the call has taken."""
TRY = "\nTry: "
"""Separates an event's message from the advice after it."""
SHARED_MEMORY = "/dev/shm"
NO_SHARED_MEMORY = "this machine has no {}, where processes keep what they share".format(SHARED_MEMORY)
MAKE_ONE = (
    "have `mkdir -p {0} && mount -t tmpfs tmpfs {0}` run as root, or bind {0} into the container; "
    'with ray="never" a function runs without it'
).format(SHARED_MEMORY)
MAKE_MORE = "see that {0} is large enough (`df -h {0}`): who writes into a full one is ended so".format(SHARED_MEMORY)


def parse_json(text: Union[str, bytes]) -> Any:
    """Parse JSON that another user may have written, or that a loss of power may have damaged.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("this is nested too deeply") from error


def parse_events(data: bytes) -> Tuple[List[Dict[str, Any]], int]:
    """Parse the complete lines of `data`.

    Returns:
        The events, and the number of bytes of their lines; an incomplete last line is left for the next call.
    """
    end = data.rfind(b"\n") + 1
    return [event for event in map(_event, data[:end].splitlines()) if event], end


def _event(line: bytes) -> Dict[str, Any]:
    """The event of a line; empty for zeros or a part of a line, as a loss of power leaves them."""
    try:
        return checked_event(parse_json(line.strip(b"\0 ")))
    except ValueError:
        return {}


def checked_event(event: Any) -> Dict[str, Any]:
    """The event if its fields have the right types; else an empty dictionary."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return {}
    fields = {**_FIELD_CHECKS[""], **_FIELD_CHECKS.get(event["event"], {})}
    return event if all(has_shape(event.get(name)) for name, has_shape in fields.items()) else {}


def is_amount(value: Any) -> bool:
    """Whether a value is possible as a number of seconds or bytes, or as a count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18


def is_moment(value: Any) -> bool:
    """Whether a value is possible as a date in seconds since 1970."""
    return is_amount(value) and value < 1e11


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _optional(has_shape: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or has_shape(value)


_IDLE_FIELDS = {name: _optional(is_amount) for name in ("idled", "cpus", "gpus", "ends", "keep_warm")}
_FIELD_CHECKS: Dict[str, Dict[str, Callable[[Any], bool]]] = {
    "": {"time": _optional(is_moment)},
    "allocated": {name: _optional(_is_text) for name in ("boot_id", "job", "nodelist", "partition", "node")},
    "call_ended": {
        **{name: _optional(_is_text) for name in ("outcome", "cause", "message", "sha256")},
        "size": _optional(is_amount),
        "modules": _optional(_are_texts),
    },
    "files_copied": {"bytes": is_amount, "seconds": is_amount},
    "idle": _IDLE_FIELDS,
    "lock_lost": {"files": _are_texts},
    "node_lost": {"node": _is_text, "why": _is_text},
    "ray_ready": {
        "host": _is_text,
        "cpus": is_amount,
        "gpus": _optional(is_amount),
        "nodes": _optional(_are_texts),
    },
    "released": _IDLE_FIELDS,
}
"""Checks of the fields that home reads, by event; "" has those of all events."""


def find_event(events: Sequence[Dict[str, Any]], name: str) -> Optional[Dict[str, Any]]:
    """The last event of this name."""
    return next((event for event in reversed(events) if event["event"] == name), None)
