"""What home and cluster agree on: the names in a run's folder, and how its events are read."""

from __future__ import annotations

import json
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


def parse_events(data: bytes) -> Tuple[List[Dict[str, Any]], int]:
    """Read the whole lines at the start of `data`.

    Returns:
        The events, and how many bytes they took: an unfinished last line is left for the next reading.
    """
    end = data.rfind(b"\n") + 1
    # A file system that lost power may leave zero bytes where a line was.
    return [json.loads(line) for line in data[:end].splitlines() if line.strip(b"\0 ")], end


def find_event(events: List[Dict[str, Any]], name: str) -> Optional[Dict[str, Any]]:
    """The last event of this name."""
    return next((event for event in reversed(events) if event["event"] == name), None)
