"""Read a pyproject.toml: the dependencies it declares, and the indexes it names for uv."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local
from slurm_ray_flow.core.requirements.model import Line, expand_variables, hide_credentials

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
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DependencyError(f"{path.name} can't be read: {error}", where=str(path)) from error
    return data


def declares_dependencies(path: Path) -> bool:
    """Whether the file has a `[project]` table whose dependencies are written out."""
    return path.is_file() and "dependencies" in read_toml(path).get("project", {})


def project_name(path: Path) -> str:
    """The project's name in PEP 503 form, or ""."""
    return canonicalize_name(read_toml(path).get("project", {}).get("name", "")) if path.is_file() else ""


def dependencies(path: Path, extras: Sequence[str] = ()) -> list[Line]:
    """What `[project]` declares, and what these extras of it add.

    Raises:
        DependencyError: a line is no requirement.
    """
    project = read_toml(path).get("project", {})
    sources = _sources(path)
    declared = project.get("optional-dependencies", {})
    optional: dict[str, list[str]] = {canonicalize_name(name): lines for name, lines in declared.items()}
    found: list[Line] = []
    pending, seen = [*project.get("dependencies", [])], set(extras)
    for extra in extras:
        pending += optional.get(canonicalize_name(extra), [])
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
        raise DependencyError(what, where=str(path), advice="run `uv lock`: uv.lock is read first")
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
    """The indexes that `[tool.uv]` names: the option that gives each to uv, by its address as written."""
    uv = read_toml(path).get("tool", {}).get("uv", {}) if path.is_file() else {}
    found = {
        index["url"]: f"--index-url {expand_variables(index['url'])}"
        if index.get("default")
        else f"--extra-index-url {expand_variables(index['url'])}"
        for index in uv.get("index", [])
    }
    if "index-url" in uv:
        found[uv["index-url"]] = f"--index-url {expand_variables(uv['index-url'])}"
    return found | {url: f"--extra-index-url {expand_variables(url)}" for url in uv.get("extra-index-url", [])}
