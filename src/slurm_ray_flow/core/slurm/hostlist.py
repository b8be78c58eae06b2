"""Slurm's short way to write many host names: "c[1-3,07],login"."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST = 100_000
"""More names than any cluster has; a text from a cluster must not fill the memory."""


def expanded(text: str) -> list[str]:
    """All names of a host list, in order."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        for name in _names(part):
            if len(found) >= MOST:
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
        first, dash, last = one.partition("-")
        if dash and first.isdigit() and last.isdigit():
            yield from (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        else:
            yield one
