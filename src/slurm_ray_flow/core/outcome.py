"""How a call ended, and the two ends of it at home: a value to give back, an exception to raise."""

from __future__ import annotations

import dataclasses
import linecache
import re
from typing import Any

from slurm_ray_flow.core.plain import encodable

NOTE = "The traceback on the cluster:"
_FRAME = re.compile(r'  File "(.+)", line (\d+), in ')


@dataclasses.dataclass(frozen=True)
class Ended:
    """What the last event of a call says.

    Attributes:
        outcome: "value", "exception", or None where there is no outcome file.
        cause: why there is no value; None for a value.
        message: what people read.
        sha256, size: of the outcome file, in bytes; None where there is none.
        files: what the function has written in its working directory: count, bytes, and the largest; None for nothing.
        usage: what the call used of what it was given, as the cluster tells it; None where it does not.
    """

    outcome: str | None
    cause: str | None = None
    message: str = ""
    sha256: str | None = None
    size: int | None = None
    usage: Any = None
    files: Any = None

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> Ended:
        return cls(
            **{
                field.name: event.get(field.name) or None
                for field in dataclasses.fields(cls)
                if field.name != "message"
            },
            message=encodable(event.get("message") or ""),
        )

    @property
    def most(self) -> int:
        """How many bytes of an outcome file may come home: those that the event states."""
        return self.size if isinstance(self.size, int) else 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A value, or the function's own exception with the traceback it had on the cluster."""

    value: Any = None
    exception: BaseException | None = None
    traceback: str = ""

    def unwrap(self) -> Any:
        """The value.

        Raises:
            BaseException: the function's own exception, with the remote traceback as a note.
        """
        if self.exception is None:
            return self.value
        raise with_note(self.exception, self.traceback)


def with_note(exception: BaseException, traceback: str) -> BaseException:
    """The exception with the remote traceback as a note (PEP 678; Python 3.10 keeps the note but shows none)."""
    note = f"{NOTE}\n\n{with_sources(traceback.rstrip())}" if traceback else ""
    notes = list(getattr(exception, "__notes__", []))
    if note and note not in notes:
        exception.__notes__ = [*notes, note]  # type: ignore[attr-defined]
    return exception


def is_from_the_cluster(exception: BaseException) -> bool:
    """Whether its note has the traceback that it had there."""
    return any(str(note).startswith(NOTE) for note in getattr(exception, "__notes__", []))


def with_sources(traceback: str) -> str:
    """The traceback with the source lines that only home has: of a notebook's cells, of a script that stayed here."""
    lines = traceback.split("\n")
    told: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        told.append(line)
        frame = _FRAME.match(line)
        if frame and not after.startswith("    ") and (source := linecache.getline(frame[1], int(frame[2])).strip()):
            told.append(f"    {source}")
    return "\n".join(told)
