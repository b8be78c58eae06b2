"""The manifest of a snapshot."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.scan.model import LocalPackage
from slurm_ray_flow.core.snapshot.entries import Hashes, Manifest
from slurm_ray_flow.core.snapshot.include import PackageData, Rules, Selection
from slurm_ray_flow.core.snapshot.layout import Layout, PlacedFolder, PlacedTree, read_again
from slurm_ray_flow.core.text import printable


class ModuleFile(Protocol):
    """A module of the user: its file, and the entry of `sys.path` on which it was found."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def root(self) -> Path:
        """The folder on `sys.path`."""
        ...


def manifest(
    files: Sequence[ModuleFile],
    *,
    project: Path,
    working_directory: Path,
    include: Sequence[str] = (),
    packages: Sequence[LocalPackage] = (),
    package_data: int = 0,
    tracked: Sequence[str] = (),
    search_path: Sequence[str] = (),
    hashes: Hashes | None = None,
) -> Manifest:
    """List the files of a snapshot.

    Modules are always sent, with a finding for a module that .gitignore names. A file that `include` names exactly is
    sent whatever .gitignore says. For a folder that `include` names exactly, only .gitignore files inside it count. A
    pattern (`*`, `?`, `[…]`, `**`) leaves out files that .gitignore names. Folders and patterns leave out .git, virtual
    environments, caches, `node_modules`, `*.pyc`, pipes, sockets and devices.

    A link to something inside the project is kept as a relative link, and its target is sent too. A link to a file
    outside is sent as that file. A link to a folder outside is an error in an included folder; a module found through
    one is sent at the place where it is imported from. A link to nothing is an error.

    Args:
        files: the modules that the scan found.
        project: the project's folder. Its files go to "project/…", all others to "outside/<n>/…".
        working_directory: the user's; the function runs there if it lies inside the project, else in the project.
        include: files, folders and patterns, relative to the project; or absolute, and then named exactly if outside.
        packages: the packages that are imported, for their data (see `PackageData`).
        package_data: the most bytes of their data that are sent, the smallest files first; 0 sends none.
        tracked: real paths of files that git tracks although .gitignore names them.
        search_path: the user's `sys.path`: the order of the roots of `files` and `packages`.
        hashes: the cache of digests, to which new ones are added.

    Raises:
        SyncError: an include matches nothing, or a file can't be read or sent as it is. Nothing was sent.
    """
    layout, rules = Layout(os.path.realpath(project), {} if hashes is None else hashes), Rules(tracked)
    modules = _Modules(layout, rules)
    path = modules.add_all(files, packages, search_path)
    selection = Selection(layout, rules)
    for text in include:
        selection.include(text)
    data = PackageData(layout, rules, package_data)
    if package_data:
        data.add_all((modules.folder(_relative(folder, root), root), regular) for folder, root, regular in packages)
    entries = tuple(sorted(layout.entries.values()))
    working = f"project/{layout.project.inside(os.path.realpath(working_directory)) or ''}".rstrip("/")
    findings = (*modules.findings, *selection.findings, *data.finding())
    return Manifest(entries, layout.roots, path, working, findings, tuple(data.left))


def refreshed(manifest: Manifest, places: Collection[str]) -> Manifest:
    """The manifest with the files (not links) at these places read again, because they have changed.

    Raises:
        SyncError: a file is gone or can't be read.
    """
    entries = tuple(read_again(entry) if entry.place in places else entry for entry in manifest.entries)
    return replace(manifest, entries=entries)


class _Modules:
    """Adds the modules that the scan found."""

    def __init__(self, layout: Layout, rules: Rules) -> None:
        self.findings: list[str] = []
        self._layout, self._rules = layout, rules
        self._roots: dict[str, tuple[PlacedTree, str]] = {}

    def add_all(
        self, files: Sequence[ModuleFile], packages: Sequence[LocalPackage], search_path: Sequence[str]
    ) -> tuple[str, ...]:
        modules = [(os.fspath(file.path), os.fspath(file.root)) for file in files]
        roots = {root for _, root in modules} | {root for _, root, _ in packages}
        for root in _in_order(roots, search_path):
            self._roots[root] = self._layout.tree(os.path.realpath(root))
        for path, root in modules:
            self._add(path, root)
        places = (f"{tree.place}/{relative}".rstrip("/") for tree, relative in self._roots.values())
        return tuple(dict.fromkeys(places))

    def folder(self, relative: str, root: str) -> PlacedFolder:
        """A folder below an entry of `sys.path`, as it lies in the snapshot."""
        tree, root_place = self._roots[root]
        return self._layout.folder(tree, f"{root_place}/{relative}".strip("/"))

    def _add(self, path: str, root: str) -> None:
        parent, _, name = _relative(path, root).rpartition("/")
        folder = self.folder(parent, root)
        self._layout.add(folder, name)
        if folder.tree is self._layout.project and self._rules.level(folder.source).ignores(name):
            self.findings.append(f"{printable(path)} is named in .gitignore, but it is imported: it is sent")


def _in_order(roots: Iterable[str], search_path: Sequence[str]) -> list[str]:
    order: dict[str, int] = {}
    for number, entry in enumerate(search_path):
        order.setdefault(os.path.realpath(entry), number)
    return sorted(roots, key=lambda root: (order.get(os.path.realpath(root), len(search_path)), root))


def _relative(path: str, root: str) -> str:
    for file, folder in ((path, root), (os.path.realpath(path), os.path.realpath(root))):
        relative = PlacedTree(folder.rstrip("/"), "").inside(file)
        if relative:
            return relative
    raise SyncError(
        f"{printable(path)} does not lie in {printable(root)}, where it is imported from.",
        where=printable(path),
        advice="Put its own folder on sys.path, or add the file with include.",
    )
