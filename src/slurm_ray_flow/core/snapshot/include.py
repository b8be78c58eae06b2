"""What the user's `include` names: files, folders and patterns."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from pathspec import GitIgnoreSpec

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.snapshot.fingerprint import printable, unreadable
from slurm_ray_flow.core.snapshot.ignore import Level, Rules
from slurm_ray_flow.core.snapshot.layout import Folder, Layout

_NEVER = frozenset(
    {".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", ".ipynb_checkpoints"}
)
_ENVIRONMENT_MARKS = frozenset({"pyvenv.cfg", "conda-meta"})
_MAGIC = frozenset("*?[")

Wanted = Callable[[str], bool]
"""Whether a real path is asked for."""


class Selection:
    """Adds what is included to a layout. `findings` says what was left out."""

    def __init__(self, layout: Layout, rules: Rules) -> None:
        self.findings: list[str] = []
        self._layout, self._rules = layout, rules
        self._seen: set[str] = set()

    def include(self, text: str) -> None:
        """Add one file, folder or pattern, as the user wrote it.

        Raises:
            SyncError: it matches nothing, lies outside of the project without being named exactly by its absolute path,
                or can't be sent.
        """
        # Not resolved: a link that is named is itself what is meant.
        path = os.path.normpath(Path(self._layout.project.source, Path(text).expanduser()))
        inside = self._layout.project.inside(path)
        if inside is None and not Path(text).expanduser().is_absolute():
            raise _outside(text, path)
        if os.path.lexists(path):
            self._exactly(path, inside)
        elif _MAGIC & set(text):
            if inside is None:
                inside = self._layout.project.inside(_real_start(path))
            if inside is None:
                raise _outside(text, path)
            self._pattern(text, inside)
        else:
            raise _nothing(text, path)
        self._follow_links()

    def _exactly(self, path: str, inside: str | None) -> None:
        parent, name = os.path.realpath(Path(path).parent), Path(path).name
        if inside == "":
            return self._walk(self._layout.folder(self._layout.project, ""), None)
        tree, above = self._layout.tree(parent if inside is None else self._layout.project.source)
        relative = above if inside is None else inside.rpartition("/")[0]
        folder = self._layout.folder(tree, relative)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return self._walk(self._layout.folder(tree, f"{relative}/{name}".lstrip("/")), None)
        return self._layout.add(folder, name)

    def _pattern(self, text: str, inside: str) -> None:
        spec = GitIgnoreSpec.from_lines([f"/{inside}"])
        start = _fixed_start(inside)
        project = self._layout.project
        matched: list[str] = []

        def wanted(path: str) -> bool:
            asked = spec.match_file(path[len(project.source) + 1 :])
            if asked:
                matched.append(path)
            return asked

        if Path(project.source, start).is_dir():
            self._walk(self._layout.folder(project, start), wanted)
        if not matched:
            raise _nothing(text, f"{project.source}/{inside}")

    def _follow_links(self) -> None:
        while self._layout.linked:
            folder = self._layout.linked.pop()
            if folder.source not in self._seen:
                self._walk(folder, None)

    def _walk(self, start: Folder, wanted: Wanted | None) -> None:
        rules = self._rules.named if wanted is None else self._rules.level
        pending = [(start, rules(start.source))]
        while pending:
            folder, level = pending.pop()
            if wanted is None:
                self._seen.add(folder.source)
            found = _listed(folder.source)
            if folder is not start and not _ENVIRONMENT_MARKS.isdisjoint(entry.name for entry in found):
                continue
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _NEVER and not level.ignores(entry.name, is_folder=True):
                        below = Folder(entry.path, f"{folder.place}/{entry.name}", folder.tree)
                        pending.append((below, level.child(entry.name)))
                elif self._belongs(entry, level, wanted):
                    self._layout.add(folder, entry.name)

    def _belongs(self, entry: os.DirEntry[str], level: Level, wanted: Wanted | None) -> bool:
        if entry.name.endswith(".pyc") or entry.name in _NEVER or level.ignores(entry.name):
            return False
        if wanted is not None and not wanted(entry.path):
            return False
        if entry.is_symlink():
            return not any(os.path.lexists(f"{entry.path}/{mark}") for mark in _ENVIRONMENT_MARKS)
        if entry.is_file():
            return True
        self.findings.append(f"{printable(entry.path)} is left out: it is a pipe, a socket or a device, not a file")
        return False


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as problem:
        raise unreadable(folder, problem) from problem


def _fixed_start(pattern: str) -> str:
    parts = pattern.split("/")
    magic = next(number for number, part in enumerate(parts) if _MAGIC & set(part))
    return "/".join(parts[:magic])


def _real_start(path: str) -> str:
    start = "/" + _fixed_start(path.lstrip("/"))
    return os.path.realpath(start) + path[len(start) :]


def _outside(text: str, path: str) -> SyncError:
    return SyncError(
        f"include={text!r} lies outside of the project.",
        where=printable(path),
        advice="What lies outside is sent only if it is named exactly, by its absolute path and without a pattern.",
    )


def _nothing(text: str, path: str) -> SyncError:
    folder = Path(path).parent
    while not folder.is_dir():
        folder = folder.parent
    missing = Path(path).relative_to(folder).parts[0]
    names = [name.name for name in folder.iterdir()] if os.access(folder, os.R_OK) else []
    close = difflib.get_close_matches(missing, names, n=1)
    if close:
        advice = f"Did you mean {printable(close[0])!r}?"
    else:
        advice = (
            "Write it relative to the project; patterns leave out what .gitignore names, so name such a file exactly."
        )
    return SyncError(f"include={text!r} matches nothing.", where=printable(str(folder)), advice=advice)
