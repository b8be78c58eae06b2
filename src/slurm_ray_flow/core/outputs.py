"""The files that a function has written: matching them with patterns, and refusing unsafe names. Pure functions."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.text import plain, printable

NAMED = 5
"""The most files that are named in one line."""


@dataclass(frozen=True)
class WrittenFile:
    """A file that a run has made or changed.

    Attributes:
        path: relative to the function's working directory, with "/" between folders.
        size: bytes.
        changed_ns: the time of its last change by the cluster's clock, in nanoseconds since 1970.
    """

    path: str
    size: int
    changed_ns: int

    @property
    def changed(self) -> datetime.datetime:
        """The time of its last change, by the cluster's clock."""
        return datetime.datetime.fromtimestamp(self.changed_ns / 1e9).astimezone()


def printable_name(path: str) -> str:
    """A file's name from a cluster, in one line, with control characters spelled out."""
    return plain(printable(path)).replace("\n", "\\n").replace("\t", "\\t")


def checked_pattern(pattern: object) -> str:
    """A pattern in its normal form.

    Raises:
        OptionError: it is no text, is empty, or leads out of the working directory.
    """
    text = pattern.strip() if isinstance(pattern, str) else ""
    parts = text.split("/")
    if "\0" in text or parts[0].startswith("~") or not parts[0] or ".." in parts:
        advice = 'write it from the function\'s working directory, such as "results/*.csv", "model.pt" or "log"'
        raise OptionError(f"{pattern!r} names no files of the run's working directory", advice=advice)
    return "/".join(part for part in parts if part not in {"", "."}) or "**"


def matching_files(files: Iterable[WrittenFile], patterns: Sequence[str]) -> list[WrittenFile]:
    """The files that a pattern names: a path, a folder with its content, or a glob (`*`, `?`, `[...]`, `**`).

    Raises:
        OptionError: a pattern leads out of the working directory.
    """
    normal_patterns = [checked_pattern(pattern) for pattern in patterns]
    spec = GitIgnoreSpec.from_lines(f"/{pattern}" for pattern in normal_patterns)
    return [file for file in files if file.path in normal_patterns or spec.match_file(file.path)]


def may_come_home(path: str) -> bool:
    """Whether a file's name from a cluster stays inside the target folder, and out of its .git."""
    return "\0" not in path and {"", ".", "..", ".git"}.isdisjoint(path.lower().split("/"))


def counted(files: int, size: int) -> str:
    """The number of files and their size, in words."""
    return f"{files} file{'s' if files != 1 else ''}, {format_memory(size)}"


def summary(files: Sequence[WrittenFile]) -> str:
    """The files in one line."""
    names = [f"{printable_name(file.path)} ({format_memory(file.size)})" for file in files[:NAMED]]
    return ", ".join(names) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")
