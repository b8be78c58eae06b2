"""Files that a function has written: which of them are meant, and which may come home. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pathspec import GitIgnoreSpec

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.plain import plain
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.snapshot.fingerprint import printable

NAMED = 5
"""So many files are named in a line."""
_NEVER = frozenset({"", ".", "..", ".git"})


@dataclass(frozen=True)
class WrittenFile:
    """A file that a run has made or changed.

    Attributes:
        path: from the function's working directory, with "/" between folders.
        size: bytes.
        changed_ns: when it was written last, by the cluster's clock, in nanoseconds since 1970.
    """

    path: str
    size: int
    changed_ns: int

    @property
    def changed(self) -> datetime.datetime:
        """When it was written last, by the cluster's clock."""
        return datetime.datetime.fromtimestamp(self.changed_ns / 1e9).astimezone()

    @property
    def shown(self) -> str:
        """Its path as it can be shown: what would steer a terminal is spelled out."""
        return shown(self.path)


def shown(path: str) -> str:
    """A name that comes from a cluster, in one line."""
    return plain(printable(path)).replace("\n", "\\n").replace("\t", "\\t")


def checked_pattern(pattern: object) -> str:
    """A pattern as it is matched.

    Raises:
        OptionError: it is no text, is empty, or leads out of the working directory.
    """
    text = pattern.strip() if isinstance(pattern, str) else ""
    parts = text.split("/")
    if not text or "\0" in text or parts[0].startswith("~") or not parts[0] or ".." in parts:
        advice = 'write it from the function\'s working directory, such as "results/*.csv", "model.pt" or "log"'
        raise OptionError(f"{pattern!r} names no files of the run's working directory", advice=advice)
    return "/".join(part for part in parts if part not in {"", "."}) or "**"


def chosen(files: Iterable[WrittenFile], patterns: Sequence[str]) -> list[WrittenFile]:
    """Those that a pattern names: a path, a folder with all that is in it, or a glob (`*`, `?`, `[...]`, `**`).

    Raises:
        OptionError: a pattern leads out of the working directory.
    """
    wanted = [checked_pattern(pattern) for pattern in patterns]
    spec = GitIgnoreSpec.from_lines(f"/{pattern}" for pattern in wanted)
    exactly, folders = set(wanted), tuple(f"{pattern}/" for pattern in wanted)
    return [
        file for file in files if file.path in exactly or file.path.startswith(folders) or spec.match_file(file.path)
    ]


def may_come_home(path: str) -> bool:
    """Whether a name that comes from a cluster stays below the folder that it is brought to, and out of its .git."""
    return "\0" not in path and not any(part.lower() in _NEVER for part in path.split("/"))


def summary(files: Sequence[WrittenFile]) -> str:
    """What is there, in a line."""
    names = [f"{file.shown} ({format_memory(file.size)})" for file in files[:NAMED]]
    return ", ".join(names) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")


def from_event(written: Any) -> str:
    """What the event of a call's end says of the run's files, in a few words; "" where there are none."""
    if not written:
        return ""
    count = int(written["count"])
    return f"{count} file{'s' if count != 1 else ''}, {format_memory(int(written['bytes']))}"
