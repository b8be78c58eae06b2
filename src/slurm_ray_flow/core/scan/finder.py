"""A finder of modules by the rules of Python's own, from folder listings alone: nothing is imported."""

# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH100, PTH112, PTH113, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from os.path import abspath, basename, dirname, isdir, isfile, join, realpath
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from slurm_ray_flow.core.scan import installed

Kind: TypeAlias = Literal["local", "installed", "standard", "ours", "missing"]

OURS = "slurm_ray_flow"
# In the order in which Python tries them within one folder.
SUFFIXES = (*EXTENSION_SUFFIXES, ".py", ".pyc")
_SITE_NAMES = frozenset({"site-packages", "dist-packages"})
_MERGING = (b"extend_path", b"declare_namespace")


class SearchFolder(NamedTuple):
    """A folder in which modules are searched: a sys.path entry, or a package's folder below one.

    Attributes:
        folder: the folder.
        root: the sys.path entry that it lies below.
        kind: "local", "site", "mixed" (installed with `pip --target`, perhaps with own modules beside) or "standard".
    """

    folder: str
    root: str
    kind: str


class Module(NamedTuple):
    """The module that a dotted name means.

    Attributes:
        name: the dotted name.
        kind: the owner of the module.
        file: its file; None for a namespace package, and for a module whose file does not matter.
        root: the sys.path entry on which it was found.
        places: the folders of its submodules; empty for a module that is no package.
    """

    name: str
    kind: Kind
    file: str | None = None
    root: str = ""
    places: tuple[SearchFolder, ...] = ()


class Finder:
    """Finds modules on a search path; each folder is listed once.

    Args:
        search_path: sys.path as the user's Python has it.
        extra: folders that are searched last.
    """

    def __init__(self, search_path: Sequence[str], extra: Iterable[str] = ()) -> None:
        self._listings: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        self._found_modules: dict[str, Module] = {}
        entries = dict.fromkeys(abspath(entry) for entry in search_path)
        self._places = [SearchFolder(entry, entry, self._kind_of(entry)) for entry in entries]
        self.sites = [place.root for place in self._places if place.kind in {"site", "mixed"}]
        self._editable = [installed.editable(site) for site in self.sites]
        late_entries = [*(root for editable in self._editable for root in editable.roots), *map(abspath, extra)]
        self._places += [
            SearchFolder(root, root, self._kind_of(root)) for root in dict.fromkeys(late_entries) if root not in entries
        ]
        self._project_roots: list[SearchFolder] | None = None

    def find(self, name: str) -> Module:
        """Return the module that `import name` would find."""
        module = self._found_modules.get(name)
        if module is None:
            parent, _, last = name.rpartition(".")
            module = self._submodule(self.find(parent), name, last) if parent else self._top(name)
            self._found_modules[name] = module
        return module

    def extensions(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield (module's last name, file) of the compiled modules in a folder."""
        for file in self._listing(folder)[0]:
            if file.endswith(tuple(EXTENSION_SUFFIXES)):
                stem = _stem(file)
                if stem.isidentifier():
                    yield stem, join(folder, file)

    def _kind_of(self, entry: str) -> str:
        if not _SITE_NAMES.isdisjoint(Path(entry).parts):
            return "site"
        real = realpath(entry)
        if any(real == folder or real.startswith(folder + os.sep) for folder in _standard_folders()):
            return "standard"
        return "mixed" if any(name.endswith(".dist-info") for name in self._listing(entry)[1]) else "local"

    def _listing(self, folder: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return the names of the files and of the folders in a folder."""
        listing = self._listings.get(folder)
        if listing is None:
            try:
                with os.scandir(folder) as entries:
                    # (`entry.is_dir` raises where a link leads to itself.)
                    kinds = [(entry.name, isdir(entry) if entry.is_symlink() else entry.is_dir()) for entry in entries]
            except OSError:
                kinds = []
            files = frozenset(name for name, is_folder in kinds if not is_folder)
            listing = self._listings[folder] = files, frozenset(name for name, is_folder in kinds if is_folder)
        return listing

    def _top(self, name: str) -> Module:
        if name == OURS:
            return Module(name, "ours")
        if name in sys.builtin_module_names or name == "__main__":
            return Module(name, "standard")
        module = self._search(name, name, self._places)
        if module is None and name in sys.stdlib_module_names:
            return Module(name, "standard")
        return (
            module or self._from_editable(name) or self._search(name, name, self._projects()) or Module(name, "missing")
        )

    def _submodule(self, parent: Module, name: str, last: str) -> Module:
        if parent.kind in {"standard", "ours", "missing"}:
            return Module(name, parent.kind)
        module = self._search(name, last, parent.places) or self._from_editable(name)
        if module is not None:
            return module
        # Installed packages may make submodules in ways that no listing shows.
        if parent.kind == "installed" and parent.file is not None:
            return Module(name, "installed", parent.file, parent.root)
        return Module(name, "missing")

    def _search(self, name: str, last: str, places: Sequence[SearchFolder]) -> Module | None:
        portions: list[SearchFolder] = []
        for position, place in enumerate(places):
            if place.kind == "standard":
                if name in sys.stdlib_module_names:
                    return Module(name, "standard")
                continue
            file = self._file_in(place.folder, last)
            if file is not None:
                return self._regular(name, last, file, places[position:])
            if last in self._listing(place.folder)[1]:
                portions.append(SearchFolder(join(place.folder, last), place.root, place.kind))
        if not portions:
            return None
        kind: Kind = "local" if any(portion.kind == "local" for portion in portions) else "installed"
        return Module(name, kind, None, portions[0].root, tuple(portions))

    def _file_in(self, folder: str, last: str) -> str | None:
        files, folders = self._listing(folder)
        if last in folders:
            package = join(folder, last)
            inner_files = self._listing(package)[0]
            for suffix in SUFFIXES:
                if "__init__" + suffix in inner_files:
                    return join(package, "__init__" + suffix)
        for suffix in SUFFIXES:
            if last + suffix in files:
                return join(folder, last + suffix)
        return None

    def _regular(self, name: str, last: str, file: str, places: Sequence[SearchFolder]) -> Module:
        first = places[0]
        kind = first.kind
        if kind == "mixed":
            kind = "site" if installed.owners(first.root, file) else "local"
        module_kind: Kind = "installed" if kind == "site" else "local"
        if dirname(file) == first.folder:
            return Module(name, module_kind, file, first.root)
        places_inside = [SearchFolder(join(first.folder, last), first.root, kind)]
        portions = [
            other for other in places[1:] if other.kind != "standard" and last in self._listing(other.folder)[1]
        ]
        if portions and _extends_path(file):
            places_inside += [SearchFolder(join(other.folder, last), other.root, other.kind) for other in portions]
        return Module(name, module_kind, file, first.root, tuple(places_inside))

    def _from_editable(self, name: str) -> Module | None:
        for site in self._editable:
            for mapped, path in site.modules:
                if mapped == name:
                    return self._module_at(name, path)
        folders = [path for site in self._editable for mapped, path in site.namespaces if mapped == name]
        portions = tuple(SearchFolder(folder, _root_above(name, folder), "local") for folder in folders)
        return Module(name, "local", None, portions[0].root, portions) if portions else None

    def _module_at(self, name: str, path: str) -> Module | None:
        if not isdir(path):
            file = next((each for each in (path, path + ".py") if isfile(each)), None)
            return Module(name, "local", file, _root_above(name, path)) if file else None
        root = _root_above(name, path)
        file = self._file_in(dirname(path), basename(path))
        return Module(name, "local", file, root, (SearchFolder(path, root, "local"),))

    def _projects(self) -> list[SearchFolder]:
        if self._project_roots is None:
            roots = [root for site in self.sites for root in installed.project_roots(site)]
            self._project_roots = [SearchFolder(root, root, "local") for root in dict.fromkeys(roots)]
        return self._project_roots


def _standard_folders() -> set[str]:
    names = ("stdlib", "platstdlib")
    return {realpath(sysconfig.get_path(name)) for name in names} | {realpath(dirname(os.__file__))}


def _root_above(name: str, path: str) -> str:
    for _ in name.split("."):
        path = dirname(path)
    return path


def _extends_path(file: str) -> bool:
    """Return whether a package joins the folders of its name on all of sys.path, as before PEP 420."""
    try:
        content = Path(file).read_bytes()
    except OSError:
        return False
    return any(word in content for word in _MERGING)


def _stem(file: str) -> str:
    suffix = next(suffix for suffix in SUFFIXES if file.endswith(suffix))
    return file.removesuffix(suffix)
