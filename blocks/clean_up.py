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

AskCluster = Callable[..., Any]
"""A function that has a cluster do an operation: `ask("clean_up.find", root=..., ...)`."""


@dataclasses.dataclass(frozen=True)
class CleanUpRoot:
    """The root to clean up: the cluster's name, its kind, its root, and the function that asks it."""

    label: str
    kind: str
    root: str
    ask: AskCluster

    @property
    def at_home(self) -> bool:
        """Whether the root is home itself, where the records are."""
        return self.kind == LOCAL and Path(self.root) == home()

    def has(self, record: RunRecord) -> bool:
        """Whether a record is of a run below this root."""
        same_root = record.kind == self.kind and record.root == self.root
        return same_root and (self.at_home or record.cluster == self.label)


def clean_up(
    target: CleanUpRoot, seconds: float, *, dry_run: bool = False, run: str = "", uv: str = ""
) -> CleanUpReport:
    """Remove files that were unused for some time, and files that can't be used any more.

    Args:
        target: the root to clean up.
        seconds: the time for which unused files stay.
        dry_run: whether nothing is removed.
        run: remove only this run, whatever its age, also one with `keep`.
        uv: the uv program that prunes the cache of packages; "" for the one under the root.

    Raises:
        SlurmRayFlowError: the cluster can't be reached, or the run is under way.
    """
    records = list(store.records_with_paths())
    if run and any(path.stem == run and _launch_under_way(record) for path, record in records):
        raise OptionError(f"run {run} still lives", where=target.label, advice=f"end it: srf cancel {run[:8]}")
    request = {"root": target.root, "seconds": seconds, "run": run, "known": _known_runs(target, records)}
    listing = target.ask("clean_up.find", **request)
    things = [StaleItem.from_answer(answer) for answer in listing["things"]]
    if dry_run:
        return CleanUpReport(target.label, True, tuple(things), tuple(listing["findings"]))
    removal = target.ask("clean_up.remove", **request, places=[thing.name for thing in things])
    gone = removed(things, removal["stayed"])
    if not run:
        gone += _prune_uv_cache(target, uv)
    remaining_runs = {_run_id(name) for name in listing["runs"]} - {_run_id(Path(thing.name).name) for thing in gone}
    _remove_records(target, records, seconds, remaining_runs, run)
    stayed = [*listing["findings"], *(f"{name}: {why}" for name, why in removal["stayed"].items())]
    return CleanUpReport(target.label, False, gone, tuple(stayed))


def _known_runs(target: CleanUpRoot, records: Iterable[tuple[Path, RunRecord]]) -> dict[str, Any]:
    """The target's runs in home's records: the seconds since the last use of each, and the runs that must stay."""
    ages: dict[str, float] = {}
    launching: set[str] = set()
    kept: set[str] = set()
    for path, record in records:
        age = time() - store.changed(path)
        # A run with the remembered value of another run shows the log of that run.
        run_ids = {_run_id(name) for name in (record.run_id, record.attempt, record.allocation)}
        if target.has(record):
            ages.update({name: min(age, ages.get(name, age)) for name in run_ids})
            launching |= run_ids if _launch_under_way(record) else set()
            kept |= run_ids if record.keep else set()
        elif target.at_home and age < RECORD_SECONDS:
            kept.add(_run_id(record.run_id))  # the clean-up of its own cluster removes it
    return {"ages": ages, "launching": sorted(launching), "kept": sorted(kept)}


def _prune_uv_cache(target: CleanUpRoot, uv: str) -> tuple[StaleItem, ...]:
    freed = int(target.ask("clean_up.prune", root=target.root, uv=uv))
    return (StaleItem("uv cache", "packages that no environment needs", 0.0, freed, 0),) if freed else ()


def _remove_records(
    target: CleanUpRoot, records: Iterable[tuple[Path, RunRecord]], seconds: float, remaining_runs: set[str], run: str
) -> None:
    """Remove home's records of runs that are not on the cluster any more."""
    for path, record in records:
        unused = time() - store.changed(path) > seconds and not record.keep and not _launch_under_way(record)
        selected = record.run_id == run if run else unused
        if target.has(record) and selected and _run_id(record.run_id) not in remaining_runs:
            with contextlib.suppress(OSError):
                path.unlink()
            shutil.rmtree(path.with_suffix(".result"), ignore_errors=True)


def _launch_under_way(record: RunRecord) -> bool:
    """Whether a run's launch is under way; its process alone does not tell, since a notebook outlives its runs."""
    return not record.ended and bool(launch_alive(record))


def _run_id(name: str) -> str:
    return name.partition(".")[0]
