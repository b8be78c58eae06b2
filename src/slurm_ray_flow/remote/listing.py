"""The listing of a snapshot: a line for each file, link and required folder; its SHA-256 names the snapshot.

A line is the content's SHA-256, a kind (f file, x executable, l link, d folder) and the place, each after a space. A
place that is not plain ASCII is written with percent signs, as in an address.
"""

from __future__ import annotations

import os
from typing import Dict, Iterable, List, NamedTuple, Sequence
from urllib.parse import unquote_to_bytes

KIND, PLACE = 65, 67
"""Where in a line they begin."""


class Line(NamedTuple):
    """One line: the content's SHA-256, the kind, and the place as the file system has it."""

    sha256: str
    kind: str
    place: str

    @property
    def folder(self) -> str:
        """Where it lies."""
        return self.place.rpartition("/")[0]


def read(record: str) -> Line:
    """A line as it is written."""
    place = record[PLACE:]
    if "%" in place:
        place = os.fsdecode(unquote_to_bytes(place))
    return Line(record[: KIND - 1], record[KIND], place)


def by_place(records: Iterable[str]) -> Dict[str, str]:
    """Lines by their place, as written there."""
    return {record[PLACE:]: record for record in records}


def patched(earlier: Iterable[str], new: Sequence[str], gone: Iterable[str]) -> List[str]:
    """The lines of a listing that is told by its difference to an earlier one.

    Args:
        earlier: the lines of that one.
        new: lines that it does not have.
        gone: places, as written, that are no more.
    """
    lines = by_place(earlier)
    for place in gone:
        lines.pop(place, None)
    lines.update(by_place(new))
    return sorted(lines.values(), key=_order)


def _order(record: str) -> "tuple[bool, str]":
    line = read(record)
    return line.kind == "d", line.place
