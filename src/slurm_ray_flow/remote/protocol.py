"""What home and cluster agree on: the names in a run's folder, and how its events are read."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Optional, Tuple

FILES = {
    "spec": "spec.json", "script": "run.sh", "function": "function.dill", "arguments": "arguments.dill",
    "events": "events.jsonl", "log": "log.txt", "head_log": "head.log", "outcome": "outcome.dill",
    "inbox": "inbox", "cancel": "cancel", "reserve": "reserve", "warning": "warning.json",
    "dashboard": "dashboard.json",
}  # fmt: skip
"""What the files of a run's folder are called, at home and on the cluster."""
TAKEN = ".running"
"""Ends the name of an entry of the inbox whose call runs."""
TRY = "\nTry: "
"""Comes in the message of an event before what the head advises."""
SHARED_MEMORY = "/dev/shm"
NO_SHARED_MEMORY = "this machine has no {}, where processes keep what they share".format(SHARED_MEMORY)
MAKE_ONE = (
    "have `mkdir -p {0} && mount -t tmpfs tmpfs {0}` run as root, or bind {0} into the container; "
    'with ray="never" a function runs without it'
).format(SHARED_MEMORY)
MAKE_MORE = "see that {0} is large enough (`df -h {0}`): who writes into a full one is ended so".format(SHARED_MEMORY)


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
        event = json.loads(line.strip(b"\0 "))
    except ValueError:
        return {}
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else {}


_SUBMITTED, _PARSABLE = re.compile(r"Submitted batch job (\d+)\b"), re.compile(r"(\d+)(?:;\S+)?")


def parse_submitted(output: str) -> str:
    """The job's id in what sbatch printed, or "": the last line that tells one, since sites print more than that."""
    lines = [line.strip() for line in output.splitlines()]
    for told in (map(_SUBMITTED.search, lines), map(_PARSABLE.fullmatch, lines)):
        found = [match[1] for match in told if match]
        if found:
            return found[-1]
    return ""


def find_event(events: List[Dict[str, Any]], name: str) -> Optional[Dict[str, Any]]:
    """The last event of this name."""
    return next((event for event in reversed(events) if event["event"] == name), None)
