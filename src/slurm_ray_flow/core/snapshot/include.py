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

# To git `a/**` is what lies in a, to pathspec it is a itself too: then nothing in it could be asked for again.
_INSIDE = re.compile(r"/\*\*(/?\s*)$")


@dataclass(frozen=True, slots=True)
class FolderRules:
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

    def child(self, name: str) -> FolderRules:
        """The rules in a folder of this one."""
        folder = f"{self.folder}/{name}"
        return FolderRules(folder, (*_own(folder), *self.specs), self.ignores(name, is_folder=True), self.tracked)

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
        """The rules in a folder that the user named: if the ones above leave it out, only those inside it count."""
        level = self.level(folder)
        return self._top(folder) if level.ignored else level

    def _read(self, folder: str) -> FolderRules:
        parent, _, name = folder.rpartition("/")
        if not parent or os.path.lexists(f"{folder}/.git"):
            return self._top(folder)
        return self.level(parent).child(name)

    def _top(self, folder: str) -> FolderRules:
        return FolderRules(folder, _own(folder), ignored=False, tracked=self._tracked)


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


_NEVER = frozenset(
    {".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", ".ipynb_checkpoints"}
)
_ENVIRONMENT_MARKS = frozenset({"pyvenv.cfg", "conda-meta"})
_MAGIC = frozenset("*?[")
_IGNORED = "named in .gitignore"
_NO_FILE = "it is a pipe, a socket or a device, not a file"

Wanted = Callable[[str], bool]
"""Whether a real path is asked for."""


class Selection:
    """Adds the files of `include` to a layout; `findings` lists those that were left out."""

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

    def _walk(self, start: PlacedFolder, wanted: Wanted | None) -> None:
        rules = self._rules.named if wanted is None else self._rules.level
        for folder, level, entries in walk(start, rules(start.source)):
            if wanted is None:
                self._seen.add(folder.source)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False) and self._belongs(entry, level, wanted):
                    self._layout.add(folder, entry.name)

    def _belongs(self, entry: os.DirEntry[str], level: FolderRules, wanted: Wanted | None) -> bool:
        if level.ignores(entry.name) or (wanted is not None and not wanted(entry.path)):
            return False
        if entry.is_symlink() or entry.is_file():
            return True
        self.findings.append(f"{printable(entry.path)} is left out: {_NO_FILE}")
        return False


class PackageData:
    """Adds the files beside the modules of packages to a layout; `left` says which of them stay at home.

    All files travel that are no modules, but for what .gitignore names, and links out of the project. What can't be
    sent, or is too much, stays at home; it is no error.

    Args:
        layout: it holds the modules, and what is included, already.
        limit: bytes that all of it may have; the smallest files go first.
    """

    def __init__(self, layout: Layout, rules: Rules, limit: int) -> None:
        self.left: list[LeftOut] = []
        self._layout, self._rules, self._limit, self._needed = layout, rules, limit, 0
        self._waiting: list[tuple[PlacedFolder, bool]] = []
        self._seen: set[str] = set()
        # size, place of what a link leads to (of a file, its own), folder, name
        self._found: list[tuple[int, str, PlacedFolder, str]] = []

    def add_all(self, packages: Iterable[tuple[PlacedFolder, bool]]) -> None:
        """Add the files of packages' folders, outer folders first; each comes with whether it has an `__init__`."""
        self._waiting += packages
        for folder, is_regular in self._waiting:  # links to folders make it longer
            self._gather(folder, is_regular)
        for size, place, folder, name in sorted(self._found, key=itemgetter(0, 1, 3)):
            self._needed += 0 if place in self._layout.entries else size
            if self._needed > self._limit and place not in self._layout.entries:
                self._leave(folder, name, size, f"over package_data, {format_memory(self._limit)} for all packages")
                continue
            try:
                self._layout.add(folder, name)
            except SyncError as problem:
                self._leave(folder, name, size, problem.what.rstrip("."))
        self._layout.linked.clear()

    def finding(self) -> list[str]:
        """The files that stay at home, in one line, without those that .gitignore names."""
        left_out = sorted((one for one in self.left if one.why != _IGNORED), key=lambda one: -one.size)
        if not left_out:
            return []
        more = f" and {len(left_out) - 1} more (the run's page lists them)" if left_out[1:] else ""
        larger = f', package_data="{brief_memory(self._needed)}" sends all' if self._needed > self._limit else ""
        file, size = printable(left_out[0].file), format_memory(left_out[0].size)
        return [f"{file!r} stays at home, {size}: {left_out[0].why}{more}; include=[{file!r}] sends it{larger}"]

    def _gather(self, start: PlacedFolder, is_regular: bool) -> None:
        for folder, level, entries in walk(start, self._rules.level(start.source), self._unlisted):
            if folder.place in self._seen:
                entries.clear()
            self._seen.add(folder.place)
            # A regular package inside a namespace comes along if it is imported; and in a folder of data a .py is data.
            is_code = not is_regular or any(entry.name == "__init__.py" for entry in entries)
            if not is_regular:
                entries[:] = [
                    one for one in entries if one.is_symlink() or not os.path.lexists(f"{one.path}/__init__.py")
                ]
            for entry in entries:
                known = f"{folder.place}/{entry.name}" in self._layout.entries
                if not known and not (is_code and entry.name.endswith(".py")):
                    self._look(folder, level, entry, start)

    def _look(self, folder: PlacedFolder, level: FolderRules, entry: os.DirEntry[str], start: PlacedFolder) -> None:
        name, is_folder, size = entry.name, entry.is_dir(follow_symlinks=False), _size(entry)
        path = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
        inside = (folder.tree or PlacedTree(start.source, start.place)).inside(path)
        if level.ignores(name, is_folder=is_folder):
            self._leave(folder, name + "/" * is_folder, size, _IGNORED)
        elif inside is None:
            self._leave(folder, name, size, f"a link to {printable(path)}, which lies elsewhere")
        elif entry.is_symlink() or entry.is_file():
            if folder.tree and entry.is_symlink() and Path(path).is_dir():
                self._waiting.append((self._layout.folder(folder.tree, inside), False))
            self._found.append((size, f"{(folder.tree or start).place}/{inside}", folder, name))
        elif not is_folder:
            self._leave(folder, name, 0, _NO_FILE)

    def _unlisted(self, folder: PlacedFolder, problem: SyncError) -> None:
        self._leave(folder, "", 0, problem.what.rstrip("."))

    def _leave(self, folder: PlacedFolder, name: str, size: int, why: str) -> None:
        if name.endswith("/") and any(place.startswith(f"{folder.place}/{name}") for place in self._layout.entries):
            return  # it is included
        path = f"{folder.source}/{name}"
        inside = self._layout.project.inside(path)
        self.left.append(LeftOut(path if inside is None else inside, size, why))


def walk(
    start: PlacedFolder, level: FolderRules, missed: Callable[[PlacedFolder, SyncError], object] | None = None
) -> Iterator[tuple[PlacedFolder, FolderRules, list[os.DirEntry[str]]]]:
    """Each folder below `start`, its rules, and its content without caches, bytecode and virtual environments.

    What .gitignore names is there, but not gone into; nor is what the caller takes out of a list.

    Args:
        missed: is told of a folder that can't be read; without it that is an error.

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
