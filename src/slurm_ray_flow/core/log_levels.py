"""How serious a line is that the function wrote: what Python's logging, warnings and Ray say of themselves. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from itertools import groupby

_NAMES = {
    "DEBUG": logging.INFO,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
}
"""DEBUG counts as INFO: Prefect keeps nothing below, and what the function wrote must not be missing."""
_LINE = re.compile(
    r"(?:\([^()]*\)\s+)?"  # Ray's "(train pid=17)"
    r"(?:\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]?\d*\]?\s*[-|:]?\s*)?"
    rf"\[?(?P<level>{'|'.join(_NAMES)})\]?(?=[:\s|\]-])"
)
_WARNING = re.compile(r"\S+:\d+: \w*Warning: ")
MOST_CHANGES = 40
"""A piece whose level changes more often is passed on as one: a record for each line would be too many."""


def by_level(text: str) -> list[tuple[int, str]]:
    """The text in pieces of whole lines, each with its level; what says nothing of itself is INFO.

    A line that begins with a space belongs to the one before it.
    """
    lines = text.split("\n")
    pieces = [
        (level, "\n".join(line for _, line in some))
        for level, some in groupby(zip(_levels(lines), lines, strict=True), key=lambda pair: pair[0])
    ]
    return pieces if len(pieces) <= MOST_CHANGES else [(logging.INFO, text)]


def _levels(lines: list[str]) -> Iterator[int]:
    level = logging.INFO
    for line in lines:
        if not line.startswith((" ", "\t")):
            level = _level(line)
        yield level


def _level(line: str) -> int:
    if found := _LINE.match(line):
        return _NAMES[found["level"]]
    return logging.WARNING if _WARNING.match(line) else logging.INFO
