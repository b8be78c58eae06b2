"""The installed distribution of an import, from the metadata of installers (PEP 376, 610, 627)."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path, PurePath
from typing import NamedTuple, TypeAlias

from slurm_ray_flow.core.scan.literals import callee, text

Metadata: TypeAlias = importlib.metadata.Distribution

_TOP_OF_RECORD = re.compile(r'^"?([^/,"\r\n]+)([/,"])', re.MULTILINE)
_SUFFIXES = (*EXTENSION_SUFFIXES, ".py", ".pyc")
_REQUIRED = re.compile(r"^\s*([A-Za-z0-9._-]+)")


def owners(folder: str, file: str) -> list[Metadata]:
    """Return the distributions that installed the module `file`, which lies below the sys.path entry `folder`.

    If several distributions share the top-level name (`google`), the file itself must be in their RECORD.
    """
    relative = os.path.relpath(file, folder).replace(os.sep, "/")
    candidates = _by_top_name(folder, _changed(folder)).get(_module_name(relative.partition("/")[0]), ())
    if len(candidates) <= 1:
        return list(candidates)
    recorded = [candidate for candidate in candidates if _lists(candidate, relative)]
    return recorded or list(candidates)


def shared(folder: str, top: str) -> bool:
    """Return whether several distributions in `folder` have modules below the name `top`."""
    return len(_by_top_name(folder, _changed(folder)).get(top, ())) > 1


def header(metadata: Metadata, field: str) -> list[str]:
    """Return the values of a metadata field. The long description is never parsed, so this is quick."""
    text = metadata.read_text("METADATA") or metadata.read_text("PKG-INFO") or ""
    head = text.partition("\n\n")[0]
    return re.findall(rf"^{field}:[ \t]*(.+?)[ \t\r]*$", head, re.MULTILINE | re.IGNORECASE)


def origin(metadata: Metadata) -> str | None:
    """Return where a distribution was installed from (PEP 610), None for a registry."""
    record = _direct_url(metadata)
    url = record.get("url")
    if not isinstance(url, str):
        return None
    source = record.get("vcs_info")
    if isinstance(source, dict):
        url = f"{source.get('vcs')}+{url}@{source.get('commit_id')}"
    inner = record.get("subdirectory")
    return f"{url}#subdirectory={inner}" if inner else url


def editable_folders(folder: str) -> list[str]:
    """Return the project folders of the editable installs that are recorded in a site folder."""
    folders: list[str] = []
    for metadata in importlib.metadata.distributions(path=[folder]):
        record = _direct_url(metadata)
        information = record.get("dir_info")
        url = str(record.get("url", ""))
        if isinstance(information, dict) and information.get("editable") and url.startswith("file://"):
            folders.append(_path_of(url))
    return folders


def _path_of(url: str) -> str:
    from urllib.request import url2pathname

    return url2pathname(url[len("file://") :])


def _direct_url(metadata: Metadata) -> dict[str, object]:
    try:
        record = json.loads(metadata.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def normalized(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it: `Scikit_Learn` is `scikit-learn`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requires(first: Metadata, names: Iterable[str], folders: Sequence[str]) -> bool:
    """Return whether a distribution is one of `names`, or requires one, directly or through other distributions.

    Requirements of extras do not count, since it is not known whether an extra was installed.
    """
    wanted_names = {normalized(name) for name in names}
    waiting, queued = [first], set[str]()
    while waiting:
        distribution = waiting.pop()
        own_name = next(iter(header(distribution, "Name")), "")
        needed = {normalized(name) for name in _requirements(distribution)}
        if normalized(own_name) in wanted_names or needed & wanted_names:
            return True
        for name in needed - queued:
            waiting += list(importlib.metadata.distributions(name=name, path=list(folders)))[:1]
        queued |= needed
    return False


def _requirements(metadata: Metadata) -> list[str]:
    lines = header(metadata, "Requires-Dist") or _requirements_of_egg(metadata)
    matches = [_REQUIRED.match(line) for line in lines if not re.search(r"\bextra\s*==", line)]
    return [match.group(1) for match in matches if match]


def _requirements_of_egg(metadata: Metadata) -> list[str]:
    return (metadata.read_text("requires.txt") or "").partition("\n[")[0].split("\n")


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _by_top_name(folder: str, changed: int) -> dict[str, tuple[Metadata, ...]]:  # noqa: ARG001
    # `changed` is part of the cache's key. importlib.metadata.packages_distributions() takes four times as long,
    # because it makes an object of every line of every RECORD.
    distributions: dict[str, tuple[Metadata, ...]] = {}
    for metadata in importlib.metadata.distributions(path=[folder]):
        for name in _top_names(metadata):
            distributions[name] = (*distributions.get(name, ()), metadata)
    return distributions


def _top_names(metadata: Metadata) -> set[str]:
    listed = metadata.read_text("top_level.txt")
    if listed and listed.strip():
        return set(listed.split())
    record = metadata.read_text("RECORD")
    if record is None:
        return {_module_name(path.parts[0]) for path in metadata.files or () if path.parts}
    names = set(_TOP_OF_RECORD.findall(record))
    return {
        name if end == "/" else _module_name(name) for name, end in names if not name.endswith((".dist-info", ".."))
    }


def _module_name(name: str) -> str:
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


@functools.lru_cache(maxsize=256)
def _files(metadata: Metadata) -> frozenset[str]:
    record = metadata.read_text("RECORD")
    if record is None:
        return frozenset(PurePath(path).as_posix() for path in metadata.files or ())
    return frozenset(line.rsplit(",", 2)[0].strip('"') for line in record.splitlines())


def _lists(metadata: Metadata, relative: str) -> bool:
    return relative in _files(metadata)


# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH116, PTH118, PTH119, PTH120


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
    projects = editable_folders(folder)
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
    path_lines = [line.strip() for line in lines if line.strip() and not line.startswith(("import ", "import\t", "#"))]
    folders = [os.path.normpath(path.parent / line) for line in path_lines]
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
    pairs: list[tuple[str, str]] = []
    for key, value in zip(table.keys, table.values, strict=True):
        name = text(key)
        paths = map(text, getattr(value, "elts", (value,)))
        pairs += [(name, path) for path in paths if name is not None and path is not None]
    return pairs


def _mapped(path: Path) -> list[tuple[str, str]]:
    calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    pairs = [tuple(map(text, call.args)) for call in calls if callee(call)[0] == "map_module"]
    return [
        (name, os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file)
        for name, file in (pair for pair in pairs if len(pair) == 2)
        if name is not None and file is not None
    ]
