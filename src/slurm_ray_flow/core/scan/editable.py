"""Editable installs, read from the files that installers leave in site-packages; none of them is imported.

- a `.pth` file with a path on a line (hatchling, setuptools with a src folder, flit, maturin);
- `__editable___NAME_finder.py` with a MAPPING and NAMESPACES (setuptools otherwise);
- `_editable_impl_NAME.py` with `map_module` calls (pdm, hatchling with renamed folders);
- anything else by the project folder in `direct_url.json` (scikit-build-core, meson-python).
"""

# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH116, PTH118, PTH119, PTH120

from __future__ import annotations

import ast
import functools
import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

from slurm_ray_flow.core.scan import installed
from slurm_ray_flow.core.scan.literals import callee, text

Mapping: TypeAlias = tuple[tuple[str, str], ...]


class Editable(NamedTuple):
    """The editable installs of a site folder.

    Attributes:
        roots: folders that a `.pth` file puts on sys.path.
        modules: (dotted name, file or package folder).
        namespaces: (dotted name, folder), one for each portion.
    """

    roots: tuple[str, ...]
    modules: Mapping
    namespaces: Mapping


def editable(folder: str) -> Editable:
    """Return the editable installs that a site folder knows of."""
    try:
        return _read(folder, os.stat(folder).st_mtime_ns)
    except OSError:
        return Editable((), (), ())


def project_roots(folder: str) -> list[str]:
    """Return the folders in which the projects of editable installs usually keep their packages."""
    projects = installed.editable_folders(folder)
    return [root for project in projects for root in (project, os.path.join(project, "src"))]


@functools.lru_cache(maxsize=64)
def _read(folder: str, changed: int) -> Editable:  # noqa: ARG001
    roots: list[str] = []
    modules: list[tuple[str, str]] = []
    namespaces: list[tuple[str, str]] = []
    for name in sorted(os.listdir(folder)):
        path = Path(folder, name)
        if name.endswith(".pth"):
            roots += _paths_of_pth(path)
        elif name.startswith("__editable___") and name.endswith("_finder.py"):
            modules += _assigned(path, "MAPPING")
            namespaces += _assigned(path, "NAMESPACES")
        elif name.startswith("_editable_impl_") and name.endswith(".py"):
            modules += _mapped(path)
    return Editable(tuple(roots), tuple(modules), tuple(namespaces))


def _paths_of_pth(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    named = [line.strip() for line in lines if line.strip() and not line.startswith(("import ", "import\t", "#"))]
    folders = [os.path.normpath(path.parent / line) for line in named]
    return [folder for folder in folders if Path(folder).is_dir()]


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _assigned(path: Path, variable: str) -> list[tuple[str, str]]:
    for node in _tree(path).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == variable and isinstance(value, ast.Dict):
            return _pairs(value)
    return []


def _pairs(table: ast.Dict) -> list[tuple[str, str]]:
    """Return (name, path) for each path of a literal {name: path} or {name: [path, ...]}."""
    found: list[tuple[str, str]] = []
    for key, value in zip(table.keys, table.values, strict=True):
        name = text(key)
        paths = map(text, getattr(value, "elts", (value,)))
        found += [(name, path) for path in paths if name is not None and path is not None]
    return found


def _mapped(path: Path) -> list[tuple[str, str]]:
    calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    pairs = [tuple(map(text, call.args)) for call in calls if callee(call)[0] == "map_module"]
    return [
        (name, os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file)
        for name, file in (pair for pair in pairs if len(pair) == 2)
        if name is not None and file is not None
    ]
