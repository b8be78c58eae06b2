"""What a Slurm site has: asked when it is not known, or known for too long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.blocks.slurm.submission import LONGEST_PAUSE
from slurm_ray_flow.blocks.waits import told_if_slow
from slurm_ray_flow.core.errors import ConnectionFailed, Rejected
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.interruption import pause
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.slurm.request import Request, is_transient, words
from slurm_ray_flow.core.slurm.site import Site, check, parse_site, site_commands
from slurm_ray_flow.remote.scheduler.slurm import NO_ANSWER

KNOWN_SECONDS = 600.0
"""Partitions change on the days of maintenance; sbatch has the last word in between."""
OF_THE_SCHEDULER = ("partitions", "nodes")
"""The questions that the scheduler itself answers; they take their turn."""
FRESH_SECONDS = 30.0
"""What was learned so lately is enough to refuse a run by it."""
ANSWER_SECONDS = 20.0
GIVE_UP_SECONDS = 300.0
"""So long a controller that does not answer is asked again."""


def check_request(machine: Machine, request: Request) -> None:
    """See that the site has what is asked for; what is refused by what was known is asked anew.

    Raises:
        Rejected: it does not.
    """
    known, age = _known(machine)
    if known is None:
        known, age = site(machine), 0.0
    try:
        check(request, known, where=machine.label)
    except Rejected:
        if age < FRESH_SECONDS:
            raise
        check(request, site(machine), where=machine.label)


def site(machine: Machine) -> Site:
    """The site as it is now.

    Raises:
        ConnectionFailed: Slurm does not answer.
    """
    answers = {}
    for name, command in site_commands().items():
        answers[name] = _asked(machine, name, command) if name in OF_THE_SCHEDULER else _said(machine, command)
    write_whole(_place(machine), json.dumps({"time": time.time(), "answers": answers}).encode())
    return parse_site(**answers)


def _asked(machine: Machine, name: str, command: list[str]) -> str:
    """What the scheduler says; one that is slow, or starts just then, is asked again, as at a submission."""
    root, deadline, seconds = str(machine.root_folder), time.monotonic() + GIVE_UP_SECONDS, 1.0
    while True:
        with told_if_slow("Slurm does not say yet what the site has; waits for its answer"):
            answer = machine.ask("slurm.query", root=root, name=f"site-{name}", command=command, age=FRESH_SECONDS)
        said = words(answer["error"])
        if answer["text"] or not said:
            return str(answer["text"])
        if time.monotonic() > deadline or not (is_transient(answer["error"]) or NO_ANSWER in answer["error"]):
            raise ConnectionFailed(
                f"Slurm does not answer: {said}", where=machine.label, advice="`sinfo` there says more; try again later"
            )
        reporter().say(f"Slurm does not say yet what the site has ({said}); asks again in {seconds:.0f} s")
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)


def _said(machine: Machine, command: list[str]) -> str:
    return str(machine.ask("commands.run", argv=command, timeout=ANSWER_SECONDS)["stdout"])


def _known(machine: Machine) -> tuple[Site | None, float]:
    """What was learned last, and how many seconds ago."""
    try:
        found: dict[str, Any] = json.loads(_place(machine).read_text())
        age = time.time() - found["time"]
        if 0 <= age < KNOWN_SECONDS:
            return parse_site(**found["answers"]), age
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None, 0.0


def _place(machine: Machine) -> Path:
    key = store.short_digest(f"{machine.label}\0{machine.root_folder}")
    return private_folder(home() / "cache" / "sites") / f"{key}.json"
