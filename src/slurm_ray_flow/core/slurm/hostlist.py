"""Slurm's short way to write many host names: "c[1-3,07],login"."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST = 100_000
"""More names than any cluster has; a text from a cluster must not fill the memory."""
_LETTERS, _DIGITS, _RANGES = 10_000_000, 20, 8
"""More letters in all, digits in a number and ranges in a name than any has."""


def expanded(text: str) -> list[str]:
    """All names of a host list, in order."""
    found: list[str] = []
    letters = 0
    for part in re.findall(r"(?:[^,\[]+|\[[^\]\[]*\])+", text):
        for name in _names(part) if part.count("[") <= _RANGES else [part]:
            letters += len(name)
            if len(found) >= MOST or letters > _LETTERS:
                return found
            found.append(name)
    return found


def _names(part: str) -> Iterator[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if match is None:
        yield part
        return
    before, ranges, after = match.groups()
    for middle in _numbers(ranges):
        for end in _names(after) if after else [""]:
            yield before + middle + end


def _numbers(ranges: str) -> Iterator[str]:
    for one in ranges.split(","):
        first, _, last = one.partition("-")
        numbers = re.fullmatch(rf"\d{{1,{_DIGITS}}}-\d{{1,{_DIGITS}}}", one)
        if numbers and int(first) <= int(last):
            yield from (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        else:
            yield one
