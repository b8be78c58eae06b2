"""The retention time of a clean-up, and its report. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import format_duration, format_memory, parse_duration

KEPT_DAYS = 30.0
"""Days that unused files stay, where the cluster's block says nothing else."""
DAY = 86400.0
RECORD_SECONDS = 365 * DAY
"""Seconds that home keeps the record of a run on a cluster that is never cleaned up."""


@dataclasses.dataclass(frozen=True)
class StaleItem:
    """Files and folders that are removed together.

    Attributes:
        kind: "run", "snapshot", "environment", ...
        name: the first of their paths.
        used: the time of their last use, in seconds since 1970; 0 where that does not matter.
        bytes, files: the bytes and files that their removal frees.
    """

    kind: str
    name: str
    used: float
    bytes: int
    files: int

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> StaleItem:
        """Read the cluster's description of an item."""
        return cls(**{field.name: answer[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class CleanUpReport:
    """The report of a clean-up of one cluster.

    Attributes:
        cluster: the cluster's name.
        dry_run: whether nothing was removed.
        things: the items that were removed, or would be.
        stayed: items that could not be removed, each with the reason.
        error: why the cluster could not be cleaned up; "" for success.
    """

    cluster: str
    dry_run: bool = False
    things: tuple[StaleItem, ...] = ()
    stayed: tuple[str, ...] = ()
    error: str = ""

    @property
    def bytes(self) -> int:
        return sum(thing.bytes for thing in self.things)

    @property
    def files(self) -> int:
        return sum(thing.files for thing in self.things)

    @property
    def total(self) -> str:
        """The sum, in a sentence."""
        if self.error:
            return f"{self.cluster} could not be cleaned up: {self.error}"
        verb = "would be free" if self.dry_run else "is free"
        names = f"{len(self.things)} thing{'' if len(self.things) == 1 else 's'}"
        return f"{self.cluster}: {names}, {self.files} files; {format_memory(self.bytes)} {verb}"

    def to_json(self) -> dict[str, Any]:
        """The report for scripts."""
        return {**dataclasses.asdict(self), "bytes": self.bytes, "files": self.files}


def report_rows(report: CleanUpReport, now: float) -> list[dict[str, str]]:
    """The report's table: the largest first."""
    largest_first = sorted(report.things, key=lambda thing: -thing.bytes)
    lines = [
        {
            "kind": thing.kind,
            "what": thing.name,
            "unused for": format_duration(now - thing.used) if thing.used else "",
            "size": format_memory(thing.bytes),
            "files": str(thing.files),
        }
        for thing in largest_first
    ]
    return [*lines, *({"kind": "left alone", "what": text} for text in report.stayed)]


def retention_seconds(days: float, older_than: str | None) -> float:
    """The seconds for which unused files stay.

    Args:
        days: the setting of the cluster.
        older_than: the user's value for this clean-up, such as "7d"; None for the setting.

    Raises:
        OptionError: the value is less than a day; such young files may belong to a launch that waits.
    """
    seconds = days * DAY if older_than is None else parse_duration(older_than, "older_than")
    if older_than is not None and seconds < DAY:
        raise OptionError(
            f"older_than={older_than!r} is less than a day", advice="what is so young may be about to run"
        )
    return seconds


def removed(things: Sequence[StaleItem], stayed: Iterable[str]) -> tuple[StaleItem, ...]:
    """The items that were removed, of those that should have been."""
    remaining = set(stayed)
    return tuple(thing for thing in things if thing.name not in remaining)
