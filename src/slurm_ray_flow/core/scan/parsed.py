"""What a scan keeps of a source file, so that an unchanged file is never parsed twice."""

# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH116

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import NamedTuple, TypeAlias

from slurm_ray_flow.core.scan.extract import Extract, Imported, Note, extract

RULES = 2
"""Another number whenever `extract` finds more: what was kept by other rules is not used."""
Stamp: TypeAlias = tuple[int, int, int]


class ParsedFile(NamedTuple):
    """The imports of one version of one file.

    Attributes:
        stamp: (mtime in ns, size, inode) of the version that was read.
        imports: see `extract.Imported`.
        notes: see `extract.Note`.
        exports: the literal `__all__` of a package's `__init__.py`.
    """

    stamp: Stamp
    imports: tuple[Imported, ...]
    notes: tuple[Note, ...]
    exports: tuple[str, ...]


def parsed_file(path: str, parsed: MutableMapping[str, ParsedFile]) -> ParsedFile:
    """Return what `path` imports, from `parsed` when the file has not changed, else by parsing it into there.

    Raises:
        OSError: the file can't be read.
    """
    status = os.stat(path)
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    known = parsed.get(path)
    if known is not None and tuple(known[0]) == stamp:
        return known
    with open(path, "rb") as file:
        content: Extract = extract(file.read(), exported=path.endswith("__init__.py"))
    fresh = parsed[path] = ParsedFile(stamp, *content)
    return fresh
