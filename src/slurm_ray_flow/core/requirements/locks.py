"""Read the lock of a project: the exact packages that it needs on the cluster.

uv reads its own lock, by `uv export`. The locks of poetry, pdm and pipenv, and pylock.toml, are lists of packages that
say for which groups and under which marker each of them is wanted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.markers import InvalidMarker, Marker
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import pyproject
from slurm_ray_flow.core.requirements.files import BEST_MATCH, Reading
from slurm_ray_flow.core.requirements.local import is_part_of, url_of
from slurm_ray_flow.core.requirements.model import Line

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock")
"""In the order in which they are looked for."""
_ALWAYS = {"main", "default"}
"""What poetry, pdm and pipenv call the group of a project's own dependencies."""
_DEFAULT_INDEX = "https://pypi.org/simple"
"""Never given as an option: a cluster may have a mirror as its own default."""
_EXPORT = (
    *("export", "--frozen", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-default-groups"),
    *("--no-emit-workspace", "--emit-index-url", "--emit-find-links"),
)
_POETRY_SOURCES = {"git": "git", "url": "url", "file": "path", "directory": "path"}
Package = Mapping[str, Any]


def is_lock(name: str) -> bool:
    """Whether a file of this name is a lock."""
    return name in LOCKS or re.fullmatch(r"pylock\.[^.]+\.toml", name) is not None


def lock_of(project: Path) -> Path | None:
    """The lock that counts for a project: its own, else that of the uv workspace whose member it is."""
    above = (folder / "uv.lock" for folder in project.resolve().parents)
    own = next((project / name for name in LOCKS if (project / name).is_file()), None)
    return own or next((lock for lock in above if lock.is_file() and _has_member(lock, project)), None)


def _has_member(lock: Path, project: Path) -> bool:
    place = re.escape(os.path.relpath(project.resolve(), lock.parent.resolve()))
    text = lock.read_text(encoding="utf-8", errors="replace")
    return re.search(rf'\b(editable|virtual)\s*=\s*"{place}"', text) is not None


def read_lock(reading: Reading, path: Path, names: Sequence[str], python: str, left_out: str) -> None:
    """Add the pins of the project's own dependencies, followed to the end, and the index options they need.

    Args:
        names: extras and groups that are wanted, too. A group that a tool installs by default, such as `dev`, is not.
        left_out: the name of a distribution that is neither wanted nor followed.

    Raises:
        DependencyError: it is damaged, has no such group, or was not made for this Python.
    """
    if path.name == "uv.lock":
        _read_exported(reading, path, names, python, left_out)
    else:
        _read_listed(reading, path, names, python)


def _read_exported(reading: Reading, path: Path, names: Sequence[str], python: str, left_out: str) -> None:
    data = pyproject.read_toml(path)
    _check_python(data.get("requires-python", ""), python, path, "uv lock")
    member = _member(data, path.parent, reading.project)
    words = ["--package", member] if member else ["--all-packages"]
    words += ["--prune", left_out] if member != left_out else []
    words += pyproject.as_options(reading.project / "pyproject.toml", names) if names else []
    text = reading.uv([*_EXPORT, *words], path.parent)
    options = {f"--index-url {_DEFAULT_INDEX}", f"--extra-index-url {_DEFAULT_INDEX}"}
    lines = ["" if line.rstrip("/") in options else line for line in text.splitlines()]
    reading.read_text("\n".join(lines), path.parent, str(path), locked=True)
    applying = [line for line in reading.lines if line.applies(reading.marks)]
    reading.lines = [dataclasses.replace(line, marker="") for line in applying]


def _member(data: Package, root: Path, project: Path) -> str:
    """The name of the workspace's member that lies in the project's folder; "" for none."""
    for package in data.get("package", []):
        source = package.get("source", {})
        place = source.get("editable", source.get("virtual"))
        if place is not None and (root / place).resolve() == project.resolve():
            return str(package["name"])
    return ""


def _check_python(wanted: str, python: str, path: Path, command: str) -> None:
    # A patch level far up: `>=3.11.4` is no word against 3.11, and `<3.14` is one against 3.14.
    try:
        bounds = SpecifierSet(wanted)
    except InvalidSpecifier:
        return  # poetry has ways of its own to write it
    if not any(bounds.contains(f"{python}.{patch}") for patch in (0, 99)):
        raise DependencyError(
            f"{path.name} is for Python {wanted}, the cluster's is {python}",
            where=str(path),
            advice=f"widen requires-python and run `{command}`",
        )


def _read_listed(reading: Reading, path: Path, names: Sequence[str], python: str) -> None:
    data = _load(path)
    about = data.get("metadata", {})
    command = {"poetry.lock": "poetry lock", "pdm.lock": "pdm lock", "Pipfile.lock": "pipenv lock"}.get(path.name, "")
    bounds = data.get("requires-python") or about.get("python-versions") or about.get("requires_python") or ""
    _check_python(bounds, python, path, command)
    packages: Sequence[Package] = data.get("packages") or data.get("package") or []
    plain = path.name in {"poetry.lock", "pdm.lock"} and any("groups" not in package for package in packages)
    try:
        if plain:
            # Of an earlier kind, which does not say what is wanted by whom: it bounds what the project asks for.
            reading.read_project(path.parent, names)
            reading.constraints += _once(packages, path.parent, python)
        else:
            wanted = _selected(data, packages, names, reading.marks, path)
            reading.lines = [line for package in wanted if (line := _line(package, path.parent))]
    except (KeyError, TypeError, AttributeError, InvalidMarker) as error:
        raise DependencyError(f"{path.name} is damaged: {error!r}", where=str(path), advice=command) from error
    reading.options = [*pyproject.index_options(path.parent / "pyproject.toml").values(), *_indexes(packages)]
    reading.options += [BEST_MATCH] if any("--extra-index-url" in option for option in reading.options) else []


def _load(path: Path) -> dict[str, Any]:
    if path.name != "Pipfile.lock":
        return pyproject.read_toml(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        about = data.pop("_meta", {})
        indexes = {source["name"]: source["url"] for source in about.get("sources", [])}
        packages = [
            {**entry, "name": name, "groups": [group], "index": indexes.get(entry.get("index", ""), "")}
            for group, entries in data.items()
            for name, entry in entries.items()
        ]
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DependencyError(f"Pipfile.lock can't be read: {error}", where=str(path)) from error
    python = about.get("requires", {}).get("python_version", "")
    return {"packages": packages, "requires-python": f"=={python}.*" if python else ""}


def _selected(
    data: Package, packages: Sequence[Package], names: Sequence[str], marks: Mapping[str, str], path: Path
) -> list[Package]:
    extras, groups = set(data.get("extras", ())), set(data.get("dependency-groups", ()))
    groups |= {group for package in packages for group in package.get("groups", ())}
    if unknown := set(names) - extras - groups:
        raise pyproject.unknown(unknown, extras | groups, path)
    default = {*data.get("default-groups", ()), *_ALWAYS, *names}
    known = {**marks, "extras": frozenset(names), "dependency_groups": frozenset(default)}
    found = [package for package in packages if default.intersection(package.get("groups", default))]
    return [package for package in found if _holds(_marker(package, default), known, names)]


def _marker(package: Package, groups: Collection[str]) -> str:
    """When it is wanted; poetry has a marker for each group where they differ."""
    marker = package.get("marker") or package.get("markers") or ""
    if isinstance(marker, str):
        return marker
    asked = [group for group in package["groups"] if group in groups]
    return " or ".join(f"({marker[group]})" for group in asked) if all(group in marker for group in asked) else ""


def _holds(marker: str, known: Mapping[str, Any], extras: Sequence[str]) -> bool:
    def evaluated(extra: str) -> bool:
        return Marker(marker).evaluate({**known, "extra": extra}, context="lock_file")

    return not marker or any(map(evaluated, ("", *extras)))


def _once(packages: Sequence[Package], base: Path, python: str) -> list[Line]:
    """The pins of the packages that are locked in one version for this Python."""
    bounds = [(package.get("python-versions") or package.get("requires_python") or "", package) for package in packages]
    fitting = [package for bound, package in bounds if bound == "*" or SpecifierSet(bound).contains(f"{python}.99")]
    versions = {
        package["name"]: {other.get("version") for other in fitting if other["name"] == package["name"]}
        for package in fitting
    }
    found = (_line(package, base) for package in fitting if len(versions[package["name"]]) == 1)
    return [line for line in found if line is not None]


def _line(package: Package, base: Path) -> Line | None:
    """Its pin; None for a folder of the project itself, which travels as files."""
    name, source = canonicalize_name(package["name"]), _source(package)
    part = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    if "path" in source:
        path = Path(os.path.normpath(base.absolute() / source["path"]))
        return None if is_part_of(path, base) else Line(name, url=url_of(path) + part)
    if "git" in source:
        return Line(name, url=f"git+{source['git']}@{source['revision']}{part}")
    if "url" in source:
        return Line(name, url=source["url"] + part)
    version = str(package.get("version", "")).removeprefix("==")
    return Line(name, specifier=f"=={version}" if version and version != "*" else "")


def _source(package: Package) -> dict[str, str]:
    """Where it is from if not from an index: `git` and `revision`, `url`, or `path`; and `subdirectory`."""
    poetry = package.get("source", {})
    if kind := _POETRY_SOURCES.get(poetry.get("type", "")):
        return {**poetry, kind: poetry["url"], "revision": poetry.get("resolved_reference") or ""}
    if "vcs" in package:
        standard = package["vcs"]
        address = standard.get("url") or url_of(Path(standard["path"]))
        return {**standard, "git": address, "revision": standard["commit-id"]}
    if found := package.get("archive") or package.get("directory"):
        return dict(found)
    kept = {key: package[key] for key in ("git", "url", "path", "subdirectory") if package.get(key)}
    return {**kept, "revision": package.get("revision") or package.get("ref") or ""}


def _indexes(packages: Sequence[Package]) -> list[str]:
    named = {
        package.get("index") or package.get("source", {}).get("url", "")
        for package in packages
        if package.get("source", {}).get("type", "legacy") == "legacy"
    }
    return sorted(f"--extra-index-url {url}" for url in named if url and url.rstrip("/") != _DEFAULT_INDEX)
