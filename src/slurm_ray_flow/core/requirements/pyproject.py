"""Read a pyproject.toml: the dependencies it declares, and the indexes it names for uv."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.dependency_groups import DependencyGroupResolver
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local, metadata
from slurm_ray_flow.core.requirements.model import Line, Uv, expand_variables, hide_credentials

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore] # pyright: ignore[reportMissingImports]


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        DependencyError: it can't be read, or is no TOML.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DependencyError(f"{path.name} can't be read: {error}", where=str(path)) from error
    return data


def declares_dependencies(path: Path) -> bool:
    """Whether the file says what the project depends on, be it written out or left to its build backend."""
    return path.is_file() and ("dependencies" in read_toml(path).get("project", {}) or is_dynamic(path.parent))


def is_dynamic(folder: Path) -> bool:
    """Whether only its build backend, or poetry, can tell what a folder's project depends on."""
    return not (folder / "pyproject.toml").is_file() or metadata.is_dynamic(read_toml(folder / "pyproject.toml"))


def project_name(path: Path) -> str:
    """The project's name in PEP 503 form, or ""."""
    return canonicalize_name(read_toml(path).get("project", {}).get("name", "")) if path.is_file() else ""


def dependencies(folder: Path, names: Sequence[str], marks: Mapping[str, str], uv: Uv) -> list[Line]:
    """What the project in a folder declares, and what these extras and groups of it add.

    Args:
        names: of extras and PEP 735 groups; one of both kinds means both.
        marks: what markers are evaluated against.
        uv: runs uv.

    Raises:
        DependencyError: a line is no requirement; there is no such extra or group; or the metadata can't be built.
    """
    path = folder / "pyproject.toml"
    declared = metadata.declared(read_toml(path) if path.is_file() else {}, folder, names, marks, uv)
    project, groups = declared.get("project", {}), _groups(declared, names, path)
    sources = _sources(path) if path.is_file() else {}
    optional: dict[str, list[str]] = {
        canonicalize_name(name): lines for name, lines in project.get("optional-dependencies", {}).items()
    }
    wanted: set[str] = {canonicalize_name(name) for name in names}
    if missing := wanted - set(optional) - set(groups):
        raise unknown(missing, {*optional, *declared.get("dependency-groups", {})}, path)
    found: list[Line] = []
    pending, seen = [*project.get("dependencies", [])], {*wanted}
    for name in sorted(wanted):
        pending += [*optional.get(name, []), *groups.get(name, [])]
    while pending:
        line = _line(pending.pop(0), path)
        if line.name != canonicalize_name(project.get("name", "")):
            found.append(_with_source(line, sources.get(line.name), path))
            continue
        # A project may name its own extras: all = ["project[plots,tests]"].
        for extra in set(line.extras) - seen:
            seen.add(extra)
            pending += optional.get(extra, [])
    return found


def unknown(names: Collection[str], known: Collection[str], path: Path) -> DependencyError:
    """The error that names an extra or group that is not there."""
    there = f"it has {', '.join(sorted(known))}" if known else "it has none"
    what = f"{path.name} has no extra or dependency group {' or '.join(sorted(names))}"
    return DependencyError(what, where=str(path), advice=there)


def as_options(path: Path, names: Sequence[str]) -> list[str]:
    """How `uv export` is told of extras and groups.

    Raises:
        DependencyError: there is no such one.
    """
    data = read_toml(path) if path.is_file() else {}
    tables = {"--extra": data.get("project", {}).get("optional-dependencies", {})}
    tables["--group"] = data.get("dependency-groups", {})
    known = [(option, canonicalize_name(name)) for option, table in tables.items() for name in table]
    if missing := {canonicalize_name(name) for name in names} - {name for _, name in known}:
        raise unknown(missing, {name for _, name in known}, path)
    wanted = {canonicalize_name(name) for name in names}
    return [word for option, name in known if name in wanted for word in (option, name)]


def _groups(declared: Mapping[str, Any], names: Sequence[str], path: Path) -> dict[str, list[str]]:
    """The lines of the PEP 735 groups among these names, those of included groups with them."""
    there = declared.get("dependency-groups", {})
    known = {canonicalize_name(name) for name in there}
    try:
        resolver = DependencyGroupResolver(there)
        wanted = [name for name in map(canonicalize_name, names) if name in known]
        return {name: [str(line) for line in resolver.resolve(name)] for name in wanted}
    except Exception as error:  # a group of exceptions of its own, of which each Python has another kind
        words = [str(one) for one in getattr(error, "exceptions", [error])]
        raise DependencyError(f"[dependency-groups]: {'; '.join(words)}", where=str(path)) from error


def _sources(path: Path) -> dict[str, Any]:
    sources = read_toml(path).get("tool", {}).get("uv", {}).get("sources", {})
    return {canonicalize_name(name): source for name, source in sources.items()}


def _with_source(line: Line, source: Any, path: Path) -> Line:
    """The requirement from where `[tool.uv.sources]` says: never a namesake from the public index.

    Raises:
        DependencyError: it says so in a way that only uv itself can follow.
    """
    if source is None or (isinstance(source, dict) and "index" in source):
        return line
    kind = next((kind for kind in ("git", "url", "path") if isinstance(source, dict) and kind in source), None)
    if kind is None or "marker" in source:
        what = f"[tool.uv.sources] of {line.name} can't be followed without a lock"
        raise DependencyError(what, where=str(path), advice="run `uv lock`: the lock is read first, also a workspace's")
    part = f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else ""
    if kind == "path":
        found = local.resolve(source["path"], path.parent, path.parent, str(path))
        return dataclasses.replace(line, specifier="", url=local.url_of(found))
    revision = next((f"@{source[key]}" for key in ("rev", "tag", "branch") if key in source), "")
    address = f"git+{source['git']}{revision}" if kind == "git" else source["url"]
    return dataclasses.replace(line, specifier="", url=expand_variables(address) + part)


def _line(text: str, path: Path) -> Line:
    try:
        return Line.of(Requirement(text))
    except InvalidRequirement as error:
        raise DependencyError(
            f"no requirement: {hide_credentials(text)}: {hide_credentials(str(error))}", where=str(path)
        ) from error


def index_options(path: Path) -> dict[str, str]:
    """The indexes that the tables of uv, pdm and poetry name: the option that gives each to uv, by its address."""
    tool = read_toml(path).get("tool", {}) if path.is_file() else {}
    uv = tool.get("uv", {})
    found = {
        index["url"]: f"--index-url {expand_variables(index['url'])}"
        if index.get("default")
        else f"--extra-index-url {expand_variables(index['url'])}"
        for index in uv.get("index", [])
    }
    for source in (*tool.get("pdm", {}).get("source", []), *tool.get("poetry", {}).get("source", [])):
        option = "--index-url" if source.get("name") == "pypi" else "--extra-index-url"
        if "url" in source and source.get("type", "index") == "index":
            found[source["url"]] = f"{option} {expand_variables(source['url'])}"
    if "index-url" in uv:
        found[uv["index-url"]] = f"--index-url {expand_variables(uv['index-url'])}"
    return found | {url: f"--extra-index-url {expand_variables(url)}" for url in uv.get("extra-index-url", [])}
