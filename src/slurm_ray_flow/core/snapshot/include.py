"""The files that `include` names, and the data files of packages, by the rules of .gitignore."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from pathspec import GitIgnoreSpec

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.quantities import brief_memory, format_memory
from slurm_ray_flow.core.snapshot.entries import LeftOut, unreadable
from slurm_ray_flow.core.snapshot.layout import Layout, PlacedFolder, PlacedTree
from slurm_ray_flow.core.text import printable

# In git `a/**` matches the content of a, in pathspec a itself, too: then a later `!a/b` could include nothing.
_INSIDE = re.compile(r"/\*\*(/?\s*)$")


@dataclass(frozen=True, slots=True)
class FolderRules:
    """The rules that hold in one folder.

    Attributes:
        folder: the folder's real path.
        specs: each .gitignore with the folder that holds it, innermost first.
        ignored: whether the folder itself is left out, with all its content.
        tracked: files that git tracks, which no rule leaves out, and their parent folders.
    """

    folder: str
    specs: tuple[tuple[GitIgnoreSpec, str], ...]
    ignored: bool
    tracked: Collection[str]

    def child(self, name: str) -> FolderRules:
        """The rules in a folder of this one."""
        folder = f"{self.folder}/{name}"
        return FolderRules(folder, (*_own_rules(folder), *self.specs), self.ignores(name, is_folder=True), self.tracked)

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
        self._levels: dict[str, FolderRules] = {}
        self._tracked = {str(path) for file in tracked for path in (file, *Path(file).parents)}

    def level(self, folder: str) -> FolderRules:
        """The rules that hold in a folder: its own .gitignore and those above, up to the repository's top."""
        rules = self._levels.get(folder)
        if rules is None:
            rules = self._levels[folder] = self._read(folder)
        return rules

    def named(self, folder: str) -> FolderRules:
        """The rules in a folder that the user named: if outer rules leave the folder out, only inner rules count."""
        level = self.level(folder)
        return self._top(folder) if level.ignored else level

    def _read(self, folder: str) -> FolderRules:
        parent, _, name = folder.rpartition("/")
        if not parent or os.path.lexists(f"{folder}/.git"):
            return self._top(folder)
        return self.level(parent).child(name)

    def _top(self, folder: str) -> FolderRules:
        return FolderRules(folder, _own_rules(folder), ignored=False, tracked=self._tracked)


def _own_rules(folder: str) -> tuple[tuple[GitIgnoreSpec, str], ...]:
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


_NEVER = frozenset(
    {".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", ".ipynb_checkpoints"}
)
_ENVIRONMENT_MARKS = frozenset({"pyvenv.cfg", "conda-meta"})
_MAGIC = frozenset("*?[")
_IGNORED = "named in .gitignore"
_NO_FILE = "it is a pipe, a socket or a device, not a file"

Wanted = Callable[[str], bool]
"""A function that says whether a real path is wanted."""


class Selection:
    """Adds the files of `include` to a layout; `findings` lists those that were left out."""

    def __init__(self, layout: Layout, rules: Rules) -> None:
        self.findings: list[str] = []
        self._layout, self._rules = layout, rules
        self._seen: set[str] = set()

    def include(self, text: str) -> None:
        """Add one file, folder or pattern, as the user wrote it.

        Raises:
            SyncError: the text matches nothing, a file can't be sent, or a path outside of the project is not named
                exactly and absolutely.
        """
        # Not resolved, since a named link stands for itself.
        path = os.path.normpath(Path(self._layout.project.source, Path(text).expanduser()))
        relative = self._layout.project.inside(path)
        if relative is None and not Path(text).expanduser().is_absolute():
            raise _outside_project(text, path)
        if os.path.lexists(path):
            self._add_named(path, relative)
        elif _MAGIC & set(text):
            if relative is None:
                relative = self._layout.project.inside(_real_start(path))
            if relative is None:
                raise _outside_project(text, path)
            self._add_matching(text, relative)
        else:
            raise _no_match(text, path)
        self._follow_links()

    def _add_named(self, path: str, relative_path: str | None) -> None:
        parent, name = os.path.realpath(Path(path).parent), Path(path).name
        if relative_path == "":
            return self._walk(self._layout.folder(self._layout.project, ""), None)
        tree, tree_place = self._layout.tree(parent if relative_path is None else self._layout.project.source)
        relative = tree_place if relative_path is None else relative_path.rpartition("/")[0]
        folder = self._layout.folder(tree, relative)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return self._walk(self._layout.folder(tree, f"{relative}/{name}".lstrip("/")), None)
        return self._layout.add(folder, name)

    def _add_matching(self, text: str, pattern: str) -> None:
        spec = GitIgnoreSpec.from_lines([f"/{pattern}"])
        start = _fixed_start(pattern)
        project = self._layout.project
        matched: list[str] = []

        def is_wanted(path: str) -> bool:
            matches = spec.match_file(path[len(project.source) + 1 :])
            if matches:
                matched.append(path)
            return matches

        if Path(project.source, start).is_dir():
            self._walk(self._layout.folder(project, start), is_wanted)
        if not matched:
            raise _no_match(text, f"{project.source}/{pattern}")

    def _follow_links(self) -> None:
        while self._layout.linked:
            folder = self._layout.linked.pop()
            if folder.source not in self._seen:
                self._walk(folder, None)

    def _walk(self, start: PlacedFolder, is_wanted: Wanted | None) -> None:
        rules = self._rules.named if is_wanted is None else self._rules.level
        for folder, level, entries in walk(start, rules(start.source)):
            if is_wanted is None:
                self._seen.add(folder.source)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False) and self._is_included(entry, level, is_wanted):
                    self._layout.add(folder, entry.name)

    def _is_included(self, entry: os.DirEntry[str], level: FolderRules, is_wanted: Wanted | None) -> bool:
        if level.ignores(entry.name) or (is_wanted is not None and not is_wanted(entry.path)):
            return False
        if entry.is_symlink() or entry.is_file():
            return True
        self.findings.append(f"{printable(entry.path)} is left out: {_NO_FILE}")
        return False


class PackageData:
    """Adds the data files of packages to a layout; `left` lists the files that stay at home.

    All files travel that are no modules, except files that .gitignore names, and links out of the project. A file that
    can't be sent, or is over the limit, stays at home without an error.

    Args:
        layout: the layout, which has the modules and the included files already.
        limit: the most bytes of all data files together; the smallest files are added first.
    """

    def __init__(self, layout: Layout, rules: Rules, limit: int) -> None:
        self.left: list[LeftOut] = []
        self._layout, self._rules, self._limit, self._needed = layout, rules, limit, 0
        self._waiting: list[tuple[PlacedFolder, bool]] = []
        self._seen: set[str] = set()
        # size, place of the file (for a link, of its target), folder, name
        self._found: list[tuple[int, str, PlacedFolder, str]] = []

    def add_all(self, packages: Iterable[tuple[PlacedFolder, bool]]) -> None:
        """Add the files of packages' folders, outer folders first; each comes with whether it has an `__init__`."""
        self._waiting += packages
        for folder, is_regular in self._waiting:  # links to folders make it longer
            self._gather(folder, is_regular)
        for size, place, folder, name in sorted(self._found, key=itemgetter(0, 1, 3)):
            self._needed += 0 if place in self._layout.entries else size
            if self._needed > self._limit and place not in self._layout.entries:
                self._leave_out(folder, name, size, f"over package_data, {format_memory(self._limit)} for all packages")
                continue
            try:
                self._layout.add(folder, name)
            except SyncError as problem:
                self._leave_out(folder, name, size, problem.what.rstrip("."))
        self._layout.linked.clear()

    def finding(self) -> list[str]:
        """The files that stay at home, in one line, without those that .gitignore names."""
        left_out = sorted((file for file in self.left if file.why != _IGNORED), key=lambda file: -file.size)
        if not left_out:
            return []
        others = f" and {len(left_out) - 1} more (the run's page lists them)" if left_out[1:] else ""
        hint = f', package_data="{brief_memory(self._needed)}" sends all' if self._needed > self._limit else ""
        file, size = printable(left_out[0].file), format_memory(left_out[0].size)
        return [f"{file!r} stays at home, {size}: {left_out[0].why}{others}; include=[{file!r}] sends it{hint}"]

    def _gather(self, start: PlacedFolder, is_regular: bool) -> None:
        for folder, level, entries in walk(start, self._rules.level(start.source), self._note_unreadable):
            if folder.place in self._seen:
                entries.clear()
            self._seen.add(folder.place)
            # A regular package inside a namespace is added only if it is imported; in a folder of data a .py is data.
            is_code = not is_regular or any(entry.name == "__init__.py" for entry in entries)
            if not is_regular:
                entries[:] = [
                    item for item in entries if item.is_symlink() or not os.path.lexists(f"{item.path}/__init__.py")
                ]
            for entry in entries:
                included = f"{folder.place}/{entry.name}" in self._layout.entries
                if not included and not (is_code and entry.name.endswith(".py")):
                    self._classify(folder, level, entry, start)

    def _classify(self, folder: PlacedFolder, level: FolderRules, entry: os.DirEntry[str], start: PlacedFolder) -> None:
        name, is_folder, size = entry.name, entry.is_dir(follow_symlinks=False), _size(entry)
        path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
        relative = (folder.tree or PlacedTree(start.source, start.place)).inside(path)
        if level.ignores(name, is_folder=is_folder):
            self._leave_out(folder, name + "/" * is_folder, size, _IGNORED)
        elif relative is None:
            self._leave_out(folder, name, size, f"a link to {printable(path)}, which lies elsewhere")
        elif entry.is_symlink() or entry.is_file():
            if folder.tree and entry.is_symlink() and Path(path).is_dir():
                self._waiting.append((self._layout.folder(folder.tree, relative), False))
            self._found.append((size, f"{(folder.tree or start).place}/{relative}", folder, name))
        elif not is_folder:
            self._leave_out(folder, name, 0, _NO_FILE)

    def _note_unreadable(self, folder: PlacedFolder, problem: SyncError) -> None:
        self._leave_out(folder, "", 0, problem.what.rstrip("."))

    def _leave_out(self, folder: PlacedFolder, name: str, size: int, why: str) -> None:
        if name.endswith("/") and any(place.startswith(f"{folder.place}/{name}") for place in self._layout.entries):
            return  # it is included
        path = f"{folder.source}/{name}"
        relative = self._layout.project.inside(path)
        self.left.append(LeftOut(path if relative is None else relative, size, why))


def walk(
    start: PlacedFolder, level: FolderRules, missed: Callable[[PlacedFolder, SyncError], object] | None = None
) -> Iterator[tuple[PlacedFolder, FolderRules, list[os.DirEntry[str]]]]:
    """Each folder below `start`, its rules, and its content without caches, bytecode and virtual environments.

    Folders that .gitignore names are listed, but not entered; nor are folders that the caller removes from a list.

    Args:
        missed: is called for a folder that can't be read; None raises the error.

    Raises:
        SyncError: a folder can't be read.
    """
    pending = [(start, level)]
    while pending:
        folder, level = pending.pop()
        try:
            with os.scandir(folder.source) as listing:
                entries = [entry for entry in listing if entry.name not in _NEVER and not entry.name.endswith(".pyc")]
        except OSError as problem:
            error = unreadable(folder.source, problem)
            if missed is None:
                raise error from problem
            missed(folder, error)
            continue
        if folder is not start and not _ENVIRONMENT_MARKS.isdisjoint(entry.name for entry in entries):
            continue
        entries = [entry for entry in entries if not (entry.is_symlink() and _is_environment(entry.path))]
        yield folder, level, entries
        pending += [
            (PlacedFolder(entry.path, f"{folder.place}/{entry.name}", folder.tree), level.child(entry.name))
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not level.ignores(entry.name, is_folder=True)
        ]


def _size(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _is_environment(folder: str) -> bool:
    return any(os.path.lexists(f"{folder}/{mark}") for mark in _ENVIRONMENT_MARKS)


def _fixed_start(pattern: str) -> str:
    parts = pattern.split("/")
    magic = next(number for number, part in enumerate(parts) if _MAGIC & set(part))
    return "/".join(parts[:magic])


def _real_start(path: str) -> str:
    start = "/" + _fixed_start(path.lstrip("/"))
    return os.path.realpath(start) + path[len(start) :]


def _outside_project(text: str, path: str) -> SyncError:
    return SyncError(
        f"include={text!r} lies outside of the project.",
        where=printable(path),
        advice="What lies outside is sent only if it is named exactly, by its absolute path and without a pattern.",
    )


def _no_match(text: str, path: str) -> SyncError:
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
