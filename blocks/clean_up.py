"""The clean-up of one root, on this machine or elsewhere, and of home's records of its runs.

It imports no Prefect: the server's supervisor uses it, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from time import time
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.run_facts import LOCAL, launch_alive
from slurm_ray_flow.core.clean_up import RECORD_SECONDS, CleanUpReport, StaleItem, removed
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.run import RunRecord

Ask = Callable[..., Any]
"""A function that has a cluster do an operation: `ask("clean_up.find", root=..., ...)`."""


@dataclasses.dataclass(frozen=True)
class CleanUpRoot:
    """The root to clean up: the cluster's name, its kind, its root, and the function that asks it."""

    label: str
    kind: str
    root: str
    ask: Ask

    @property
    def at_home(self) -> bool:
        """Whether the root is home itself, where the records are."""
        return self.kind == LOCAL and Path(self.root) == home()

    def has(self, record: RunRecord) -> bool:
        """Whether a record is of a run below this root."""
        same = record.kind == self.kind and record.root == self.root
        return same and (self.at_home or record.cluster == self.label)


def clean_up(
    place: CleanUpRoot, seconds: float, *, dry_run: bool = False, run: str = "", uv: str = ""
) -> CleanUpReport:
    """Remove files that were unused for so long, and files without any use.

    Args:
        place: where.
        seconds: how long a thing stays that nobody uses.
        dry_run: remove nothing.
        run: remove this run alone, however young it is, also one that was to be kept.
        uv: the uv program that looks after the cache of packages; empty for the one under the root.

    Raises:
        SlurmRayFlowError: the cluster can't be reached, or the run lives.
    """
    records = list(store.records_with_paths())
    if run and any(path.stem == run and _launching(record) for path, record in records):
        raise OptionError(f"run {run} still lives", where=place.label, advice=f"end it: srf cancel {run[:8]}")
    asked = {"root": place.root, "seconds": seconds, "run": run, "known": _known(place, records)}
    found = place.ask("clean_up.find", **asked)
    things = [StaleItem.from_answer(answer) for answer in found["things"]]
    if dry_run:
        return CleanUpReport(place.label, True, tuple(things), tuple(found["findings"]))
    done = place.ask("clean_up.remove", **asked, places=[thing.name for thing in things])
    gone = removed(things, done["stayed"])
    if not run:
        gone += _pruned(place, uv)
    there = {_run_id(name) for name in found["runs"]} - {_run_id(Path(thing.name).name) for thing in gone}
    _forget(place, records, seconds, there, run)
    stayed = [*found["findings"], *(f"{name}: {why}" for name, why in done["stayed"].items())]
    return CleanUpReport(place.label, False, gone, tuple(stayed))


def _known(place: CleanUpRoot, records: Iterable[tuple[Path, RunRecord]]) -> dict[str, Any]:
    """The runs there that home has records of: the time of each one's last use, and those that must stay."""
    ages: dict[str, float] = {}
    launching: set[str] = set()
    kept: set[str] = set()
    for path, record in records:
        age = time() - store.changed(path)
        # A run that was given another one's remembered value shows that one's log.
        named = {_run_id(name) for name in (record.run_id, record.attempt, record.allocation)}
        if place.has(record):
            ages.update({name: min(age, ages.get(name, age)) for name in named})
            launching |= named if _launching(record) else set()
            kept |= named if record.keep else set()
        elif place.at_home and age < RECORD_SECONDS:
            kept.add(_run_id(record.run_id))  # its own cluster's clean-up sees to it
    return {"ages": ages, "launching": sorted(launching), "kept": sorted(kept)}


def _pruned(place: CleanUpRoot, uv: str) -> tuple[StaleItem, ...]:
    freed = int(place.ask("clean_up.prune", root=place.root, uv=uv))
    return (StaleItem("uv cache", "packages that no environment needs", 0.0, freed, 0),) if freed else ()


def _forget(
    place: CleanUpRoot, records: Iterable[tuple[Path, RunRecord]], seconds: float, there: set[str], run: str
) -> None:
    """Remove home's records of runs that are not on the cluster any more."""
    for path, record in records:
        old = time() - store.changed(path) > seconds and not record.keep and not _launching(record)
        wanted = record.run_id == run if run else old
        if place.has(record) and wanted and _run_id(record.run_id) not in there:
            with contextlib.suppress(OSError):
                path.unlink()
            shutil.rmtree(path.with_suffix(".result"), ignore_errors=True)


def _launching(record: RunRecord) -> bool:
    """Whether a run's launch is under way; a notebook lives long after its runs have ended."""
    return not record.ended and bool(launch_alive(record))


def _run_id(name: str) -> str:
    return name.partition(".")[0]
