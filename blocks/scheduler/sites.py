"""What a site has: asked when it is not known, or known for too long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.blocks.scheduler.submission import LONGEST_PAUSE
from slurm_ray_flow.blocks.waits import message_if_slow
from slurm_ray_flow.core.errors import ConnectionFailed, Rejected
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.interruption import pause
from slurm_ray_flow.core.launch_events import Note, publish
from slurm_ray_flow.core.scheduler import Dialect, JobRequest
from slurm_ray_flow.remote.scheduler.commands import NO_ANSWER

KNOWN_SECONDS = 600.0
"""Partitions change on the days of maintenance; the submission has the last word in between."""
FRESH_SECONDS = 30.0
"""What was learned so lately is enough to refuse a run by it."""
ANSWER_SECONDS = 20.0
GIVE_UP_SECONDS = 300.0
"""So long a controller that does not answer is asked again."""


def check_request(machine: Machine, dialect: Dialect, request: JobRequest) -> None:
    """See that the site has what is asked for; what is refused by what was known is asked anew.

    Raises:
        Rejected: it does not.
    """
    if dialect.site is None:
        return
    known, age = _known(machine, dialect)
    if known is None:
        known, age = site(machine, dialect), 0.0
    try:
        dialect.site.check(request, known, machine.label)
    except Rejected:
        if age < FRESH_SECONDS:
            raise
        dialect.site.check(request, site(machine, dialect), machine.label)


def site(machine: Machine, dialect: Dialect) -> Any:
    """The site as it is now; None where the scheduler does not tell.

    Raises:
        ConnectionFailed: the scheduler does not answer.
    """
    if dialect.site is None:
        return None
    answers = {}
    for name, command in dialect.site.commands.items():
        counted = name in dialect.site.counted
        answers[name] = _asked(machine, dialect, name, command) if counted else _said(machine, command)
    write_whole(_place(machine), json.dumps({"time": time.time(), "answers": answers}).encode())
    return dialect.site.parse(**answers)


def _asked(machine: Machine, dialect: Dialect, name: str, command: list[str]) -> str:
    """What the scheduler says; one that is slow, or starts just then, is asked again, as at a submission."""
    advice = dialect.site.advice if dialect.site else ""
    root, deadline, seconds = str(machine.root_folder), time.monotonic() + GIVE_UP_SECONDS, 1.0
    while True:
        with message_if_slow(f"{dialect.name} does not say yet what the site has; waits for its answer"):
            answer = machine.ask("scheduler.query", root=root, name=f"site-{name}", command=command, age=FRESH_SECONDS)
        said = dialect.words(answer["error"])
        if answer["text"] or not said:
            return str(answer["text"])
        if time.monotonic() > deadline or not (dialect.is_transient(answer["error"]) or NO_ANSWER in answer["error"]):
            raise ConnectionFailed(f"{dialect.name} does not answer: {said}", where=machine.label, advice=advice)
        publish(Note(f"{dialect.name} does not say yet what the site has ({said}); asks again in {seconds:.0f} s"))
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)


def _said(machine: Machine, command: list[str]) -> str:
    return str(machine.ask("commands.run", argv=command, timeout=ANSWER_SECONDS)["stdout"])


def _known(machine: Machine, dialect: Dialect) -> tuple[Any, float]:
    """What was learned last, and how many seconds ago."""
    assert dialect.site is not None
    try:
        found: dict[str, Any] = json.loads(_place(machine).read_text())
        age = time.time() - found["time"]
        if 0 <= age < KNOWN_SECONDS:
            return dialect.site.parse(**found["answers"]), age
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None, 0.0


def _place(machine: Machine) -> Path:
    key = store.short_digest(f"{machine.label}\0{machine.root_folder}")
    return private_folder(home() / "cache" / "sites") / f"{key}.json"
