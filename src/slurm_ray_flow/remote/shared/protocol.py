"""What home and cluster agree on: the names in a run's folder, and how its events are read."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union


class OperationError(Exception):
    """Something went wrong that a person can do something about.

    Args:
        what: what went wrong, one sentence.
        where: the path or process it concerns.
        advice: what to try.
        cause: one of the causes of a run's end ("lock", "environment", ...), or "" where it has none.
    """

    def __init__(self, what: str, where: str = "", advice: str = "", cause: str = "") -> None:
        super().__init__(what, where, advice, cause)
        self.what, self.where, self.advice, self.cause = what, where, advice, cause


FILES = {
    "spec": "spec.json", "script": "run.sh", "function": "function.dill", "arguments": "arguments.dill",
    "events": "events.jsonl", "log": "log.txt", "head_log": "head.log", "outcome": "outcome.dill",
    "inbox": "inbox", "cancel": "cancel", "reserve": "reserve", "warning": "warning.json",
    "dashboard": "dashboard.json", "items": "items",
}  # fmt: skip
"""What the files of a run's folder are called, at home and on the cluster."""
TAKEN = ".running"
"""Ends the name of an entry of the inbox whose call runs, and of a bundle of items that the call has taken."""
TRY = "\nTry: "
"""Comes in the message of an event before what the head advises."""
SHARED_MEMORY = "/dev/shm"
NO_SHARED_MEMORY = "this machine has no {}, where processes keep what they share".format(SHARED_MEMORY)
MAKE_ONE = (
    "have `mkdir -p {0} && mount -t tmpfs tmpfs {0}` run as root, or bind {0} into the container; "
    'with ray="never" a function runs without it'
).format(SHARED_MEMORY)
MAKE_MORE = "see that {0} is large enough (`df -h {0}`): who writes into a full one is ended so".format(SHARED_MEMORY)


def parse_json(text: Union[str, bytes]) -> Any:
    """What JSON says that somebody else may have written, or a loss of power have damaged.

    Raises:
        ValueError: it is none, or is nested more deeply than anything of ours.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("this is nested too deeply") from error


def parse_events(data: bytes) -> Tuple[List[Dict[str, Any]], int]:
    """Read the whole lines at the start of `data`.

    Returns:
        The events, and how many bytes they took: an unfinished last line is left for the next reading.
    """
    end = data.rfind(b"\n") + 1
    return [event for event in map(_event, data[:end].splitlines()) if event], end


def _event(line: bytes) -> Dict[str, Any]:
    """The event of a line; an empty one where a loss of power has left zeros, or a part of a line."""
    try:
        return checked_event(parse_json(line.strip(b"\0 ")))
    except ValueError:
        return {}


def checked_event(said: Any) -> Dict[str, Any]:
    """What is said to be an event, if it has the shape of one; else an empty one."""
    if not isinstance(said, dict) or not isinstance(said.get("event"), str):
        return {}
    fields = {**_SHAPES[""], **_SHAPES.get(said["event"], {})}
    return said if all(is_one(said.get(name)) for name, is_one in fields.items()) else {}


def is_amount(value: Any) -> bool:
    """Whether it is a number that seconds, bytes or a count can be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18


def is_moment(value: Any) -> bool:
    """Whether it is a number of seconds since 1970 that stands for a date."""
    return is_amount(value) and value < 1e11


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _or_nothing(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_one(value)


_IDLING = {name: _or_nothing(is_amount) for name in ("idled", "cpus", "gpus", "ends", "keep_warm")}
_SHAPES: Dict[str, Dict[str, Callable[[Any], bool]]] = {
    "": {"time": _or_nothing(is_moment)},
    "allocated": {name: _or_nothing(_is_text) for name in ("boot_id", "job", "nodelist", "partition", "node")},
    "call_ended": {
        **{name: _or_nothing(_is_text) for name in ("outcome", "cause", "message", "sha256")},
        "size": _or_nothing(is_amount),
    },
    "files_copied": {"bytes": is_amount, "seconds": is_amount},
    "idle": _IDLING,
    "lock_lost": {"files": _are_texts},
    "node_lost": {"node": _is_text, "why": _is_text},
    "ray_ready": {
        "host": _is_text,
        "cpus": is_amount,
        "gpus": _or_nothing(is_amount),
        "nodes": _or_nothing(_are_texts),
    },
    "released": _IDLING,
}
"""What home reads of an event, and what it must be; those of all events stand under ""."""


def find_event(events: Sequence[Dict[str, Any]], name: str) -> Optional[Dict[str, Any]]:
    """The last event of this name."""
    return next((event for event in reversed(events) if event["event"] == name), None)
