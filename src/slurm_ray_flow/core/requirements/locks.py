"""Read the lock of a project: the exact packages that it needs on the cluster.

uv reads its own lock (`uv export`). The locks of poetry and pdm, and pylock.toml, are lists of packages that say for
which groups and under which marker each of them is wanted.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import pyproject
from slurm_ray_flow.core.requirements.files import Reading
from slurm_ray_flow.core.requirements.local import is_part_of, url_of
from slurm_ray_flow.core.requirements.model import Line

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml")
"""In the order in which they are looked for."""
_DEFAULT_INDEX = "https://pypi.org/simple"  # never an option: a cluster may have a mirror as its own default
_EXPORT = (
    *("export", "--frozen", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-default-groups"),
    *("--no-emit-workspace", "--emit-index-url", "--emit-find-links"),
)
Package = Mapping[str, Any]


def lock_of(project: Path) -> Path | None:
    """The lock that counts for a project: its own, else that of the uv workspace whose member it is."""
    own = next((project / name for name in LOCKS if (project / name).is_file()), None)
    above = (folder / "uv.lock" for folder in project.resolve().parents)
    return own or next((lock for lock in above if lock.is_file() and _has_member(lock, project.resolve())), None)


def _has_member(lock: Path, project: Path) -> bool:
    place = re.escape(os.path.relpath(project, lock.parent))
    return re.search(rf'\b(editable|virtual)\s*=\s*"{place}"', lock.read_text(errors="replace")) is not None


def read_lock(reading: Reading, path: Path, names: Sequence[str], python: str, left_out: str) -> None:
    """Add the pins of the project's own dependencies, followed to the end, and the index options they need.

    Args:
        names: extras and groups that are wanted, too. A group that a tool installs by default, such as `dev`, is not.
        left_out: the name of a distribution that is neither wanted nor followed.

    Raises:
        DependencyError: it is damaged, has no such group, or was not made for this Python.
    """
    data = pyproject.read_toml(path)
    _check_python(data.get("requires-python") or data.get("metadata", {}).get("python-versions") or "", python, path)
    if path.name == "uv.lock":
        _read_exported(reading, path, names, data, left_out)
        return
    packages: Sequence[Package] = data.get("packages") or data.get("package") or []
    named = pyproject.index_options(path.parent / "pyproject.toml").values()
    if path.name in {"poetry.lock", "pdm.lock"} and any("groups" not in package for package in packages):
        # Of an earlier kind, which does not say what is wanted by whom: it bounds what the project asks for.
        reading.lines += reading.required_by(path.parent, names)
        reading.constraints += _lines(_one_of_each(packages, python), path.parent)
    else:
        reading.lines += _lines(_selected(data, packages, names, reading.marks, path), path.parent)
    reading.add_options([*named, *_indexes(packages)])


def _read_exported(reading: Reading, path: Path, names: Sequence[str], data: Package, left_out: str) -> None:
    root, own = path.parent, pyproject.read_toml(reading.project / "pyproject.toml")
    member = [package["name"] for package in data.get("package", []) if _lies_in(package, root, reading)]
    members = member or data.get("manifest", {}).get("members", [])
    words = [word for name in members for word in ("--package", name)]
    words += ["--prune", left_out] if left_out not in members else []
    extras = own.get("project", {}).get("optional-dependencies", {})
    words += [word for name in names for word in ("--extra" if name in extras else "--group", name)]
    text = reading.uv([*_EXPORT, *words], root)
    kept = [line for line in text.splitlines() if _DEFAULT_INDEX not in line and not _is_part(line, root)]
    reading.read_text("\n".join(kept), root, str(path))
    applying = [line for line in reading.lines if line.applies(reading.marks)]
    reading.lines = [dataclasses.replace(line, marker="") for line in applying]


def _lies_in(package: Package, root: Path, reading: Reading) -> bool:
    source = package.get("source", {})
    place = source.get("editable", source.get("virtual"))
    return place is not None and (root / place).resolve() == reading.project.resolve()


def _is_part(line: str, root: Path) -> bool:
    """Whether a line is a folder of the workspace, which travels as files."""
    path = line.removeprefix("-e ").partition(" ; ")[0]
    return path.startswith(".") and is_part_of(root / path, root)


def _check_python(wanted: str, python: str, path: Path) -> None:
    try:
        bounds = SpecifierSet(wanted)
    except InvalidSpecifier:
        return  # poetry has ways of its own to write it
    # A patch level far up: `>=3.11.4` is no word against 3.11, and `<3.14` is one against 3.14.
    if not any(bounds.contains(f"{python}.{patch}") for patch in (0, 99)):
        what, tool = f"{path.name} is for Python {wanted}, the cluster's is {python}", path.stem
        raise DependencyError(what, where=str(path), advice=f"widen requires-python and run `{tool} lock`")


def _selected(
    data: Package, packages: Sequence[Package], names: Sequence[str], marks: Mapping[str, str], path: Path
) -> list[Package]:
    there = {group for package in packages for group in package.get("groups", ())}
    there |= {*data.get("extras", ()), *data.get("dependency-groups", ())}
    if missing := {*names} - there:
        raise pyproject.unknown(missing, there, path)
    groups = {"main", "default", *data.get("default-groups", ()), *names}
    known: dict[str, Any] = {**marks, "extras": frozenset(names), "dependency_groups": frozenset(groups)}

    def wanted(package: Package) -> bool:
        marker = _marker(package, groups)
        asked = not groups.isdisjoint(package.get("groups", groups))
        return asked and (not marker or any(Marker(marker).evaluate({**known, "extra": e}) for e in ("", *names)))

    return [package for package in packages if wanted(package)]


def _marker(package: Package, groups: Collection[str]) -> str:
    """When it is wanted; poetry has a marker for each group where they differ."""
    marker = package.get("marker") or package.get("markers") or ""
    if isinstance(marker, str):
        return marker
    asked = [marker.get(group) for group in package["groups"] if group in groups]
    return " or ".join(f"({text})" for text in asked) if all(asked) else ""


def _one_of_each(packages: Sequence[Package], python: str) -> list[Package]:
    """Those that are locked in one version for this Python."""
    bounds = ("python-versions", "requires_python")
    bound = [" ".join(package.get(key, "") for key in bounds).strip(" *") for package in packages]
    fitting = [one for one, text in zip(packages, bound, strict=True) if SpecifierSet(text).contains(f"{python}.99")]
    return [one for one in fitting if len({other["version"] for other in fitting if other["name"] == one["name"]}) == 1]


def _lines(packages: Sequence[Package], base: Path) -> list[Line]:
    """Their pins, without folders of the project itself, which travel as files."""
    return [line for line in (_line(package, base) for package in packages) if line]


def _line(package: Package, base: Path) -> Line | None:
    places = [package.get(kind) for kind in ("source", "vcs", "archive", "directory")]
    name, source = canonicalize_name(package["name"]), next(filter(None, places), package)
    address = source.get("url") or source.get("git") or ""
    local = source.get("path") or (address if source.get("type") in {"file", "directory"} else "")
    commit = source.get("resolved_reference") or source.get("commit-id") or source.get("revision")
    part = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    if local:
        path = Path(os.path.normpath(base.absolute() / local))
        return None if is_part_of(path, base) else Line(name, url=url_of(path) + part)
    if address and source.get("type") != "legacy":
        return Line(name, url=f"git+{address}@{commit}{part}" if commit else address + part)
    return Line(name, specifier=f"=={package['version']}")


def _indexes(packages: Sequence[Package]) -> list[str]:
    sources = [package.get("source", {}) for package in packages]
    named = {source["url"] for source in sources if source.get("type") == "legacy"}
    named |= {package.get("index", _DEFAULT_INDEX) for package in packages}
    return sorted(f"--extra-index-url {url}" for url in named if url.rstrip("/") != _DEFAULT_INDEX)
