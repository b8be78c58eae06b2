"""What .gitignore files say, as git reads them: nested, negated, the innermost word counts."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from slurm_ray_flow.core.errors import SyncError

# To git `a/**` is what lies in a, to pathspec it is a itself too: then nothing in it could be asked for again.
_INSIDE = re.compile(r"/\*\*(/?\s*)$")


@dataclass(frozen=True, slots=True)
class Level:
    """The rules that hold in one folder.

    Attributes:
        folder: its real path.
        specs: rules with the folder that they were written in, innermost first.
        ignored: the folder itself is left out, so all in it is.
        tracked: files that are not left out whatever the rules say, and the folders on the way to them.
    """

    folder: str
    specs: tuple[tuple[GitIgnoreSpec, str], ...]
    ignored: bool
    tracked: Collection[str]

    def child(self, name: str) -> Level:
        """The rules in a folder of this one."""
        folder = f"{self.folder}/{name}"
        return Level(folder, (*_own(folder), *self.specs), self.ignores(name, is_folder=True), self.tracked)

    def ignores(self, name: str, *, is_folder: bool = False) -> bool:
        """Whether a file or folder directly in this one is left out."""
        if f"{self.folder}/{name}" in self.tracked:
            return False
        if self.ignored:
            return True
        path = f"{self.folder}/{name}/" if is_folder else f"{self.folder}/{name}"
        for spec, base in self.specs:
            include = spec.check_file(path[len(base) + 1 :]).include
            if include is not None:
                return include
        return False


class Rules:
    """The rules of a whole tree, read once.

    Args:
        tracked: real paths of files that git tracks although its own rules name them.
    """

    def __init__(self, tracked: Iterable[str] = ()) -> None:
        self._levels: dict[str, Level] = {}
        self._tracked = {str(path) for file in tracked for path in (file, *Path(file).parents)}

    def level(self, folder: str) -> Level:
        """The rules that hold in a folder: its own .gitignore and those above, up to the repository's top."""
        known = self._levels.get(folder)
        if known is None:
            known = self._levels[folder] = self._read(folder)
        return known

    def named(self, folder: str) -> Level:
        """The rules in a folder that the user named: if the ones above leave it out, only those inside it count."""
        level = self.level(folder)
        return self._top(folder) if level.ignored else level

    def _read(self, folder: str) -> Level:
        parent, _, name = folder.rpartition("/")
        if not parent or os.path.lexists(f"{folder}/.git"):
            return self._top(folder)
        return self.level(parent).child(name)

    def _top(self, folder: str) -> Level:
        return Level(folder, _own(folder), ignored=False, tracked=self._tracked)


def _own(folder: str) -> tuple[tuple[GitIgnoreSpec, str], ...]:
    file = Path(folder, ".gitignore")
    try:
        lines = file.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ()
    try:
        return ((GitIgnoreSpec.from_lines(_INSIDE.sub(r"/**/*\1", line) for line in lines), folder),)
    except ValueError as problem:
        raise SyncError(
            f"A line of .gitignore can't be understood: {problem}", where=str(file), advice="Mend that line."
        ) from problem
