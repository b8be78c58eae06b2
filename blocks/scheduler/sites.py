"""The resources of a site, in a cache that expires."""

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
"""Seconds for which a cached site is used; partitions rarely change, and the submission checks a request anyway."""
FRESH_SECONDS = 30.0
"""Seconds for which a cached site is new enough to refuse a request."""
ANSWER_SECONDS = 20.0
GIVE_UP_SECONDS = 300.0
"""Seconds for which a controller that does not answer is asked again."""


def check_request(machine: Machine, dialect: Dialect, request: JobRequest) -> None:
    """Check that the site has the requested resources; before a refusal an older cached site is read anew.

    Raises:
        Rejected: it does not have them.
    """
    if dialect.site is None:
        return
    known_site, age = _cached_site(machine, dialect)
    if known_site is None:
        known_site, age = site(machine, dialect), 0.0
    try:
        dialect.site.check(request, known_site, machine.label)
    except Rejected:
        if age < FRESH_SECONDS:
            raise
        dialect.site.check(request, site(machine, dialect), machine.label)


def site(machine: Machine, dialect: Dialect) -> Any:
    """The site as it is now; None if the scheduler does not describe it.

    Raises:
        ConnectionFailed: the scheduler does not answer.
    """
    if dialect.site is None:
        return None
    answers = {}
    for name, command in dialect.site.commands.items():
        counted = name in dialect.site.counted
        answers[name] = _ask_controller(machine, dialect, name, command) if counted else _output_of(machine, command)
    write_whole(_cache_file(machine), json.dumps({"time": time.time(), "answers": answers}).encode())
    return dialect.site.parse(**answers)


def _ask_controller(machine: Machine, dialect: Dialect, name: str, command: list[str]) -> str:
    """The output of a command that the controller answers; it is repeated while the controller is slow or starts."""
    advice = dialect.site.advice if dialect.site else ""
    root, deadline, seconds = str(machine.root_folder), time.monotonic() + GIVE_UP_SECONDS, 1.0
    while True:
        with message_if_slow(f"{dialect.name} does not say yet what the site has; waits for its answer"):
            answer = machine.ask("scheduler.query", root=root, name=f"site-{name}", command=command, age=FRESH_SECONDS)
        message = dialect.words(answer["error"])
        if answer["text"] or not message:
            return str(answer["text"])
        if time.monotonic() > deadline or not (dialect.is_transient(answer["error"]) or NO_ANSWER in answer["error"]):
            raise ConnectionFailed(f"{dialect.name} does not answer: {message}", where=machine.label, advice=advice)
        publish(Note(f"{dialect.name} does not say yet what the site has ({message}); asks again in {seconds:.0f} s"))
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)


def _output_of(machine: Machine, command: list[str]) -> str:
    return str(machine.ask("commands.run", argv=command, timeout=ANSWER_SECONDS)["stdout"])


def _cached_site(machine: Machine, dialect: Dialect) -> tuple[Any, float]:
    """The cached site, and its age in seconds; None if it is missing or too old."""
    assert dialect.site is not None
    try:
        cached: dict[str, Any] = json.loads(_cache_file(machine).read_text())
        age = time.time() - cached["time"]
        if 0 <= age < KNOWN_SECONDS:
            return dialect.site.parse(**cached["answers"]), age
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None, 0.0


def _cache_file(machine: Machine) -> Path:
    key = store.short_digest(f"{machine.label}\0{machine.root_folder}")
    return private_folder(home() / "cache" / "sites") / f"{key}.json"
