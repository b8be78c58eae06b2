"""Read the lock of a project: the exact packages that it needs on the cluster.

uv reads its own lock (`uv export`). The locks of poetry and pdm, and pylock.toml, are lists of packages that say for
which groups and under which marker each of them is wanted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.dependency_groups import DependencyGroupResolver
from packaging.markers import Marker
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local
from slurm_ray_flow.core.requirements.files import ReadRequirements
from slurm_ray_flow.core.requirements.local import is_part_of, url_of
from slurm_ray_flow.core.requirements.model import RequirementLine, Uv, expand_variables, hide_credentials, instead_of

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml")
"""The names of locks, in the order of the search."""
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


def read_lock(reading: ReadRequirements, path: Path, names: Sequence[str], python: str, left_out: str) -> None:
    """Add the pins of the project's own dependencies, followed to the end, and the index options they need.

    Args:
        names: extras and groups that are wanted, too. A group that a tool installs by default, such as `dev`, is not.
        left_out: the name of a distribution that is neither wanted nor followed.

    Raises:
        DependencyError: it is damaged, has no such group, or was not made for this Python.
    """
    data = read_toml(path)
    _check_python(data.get("requires-python") or data.get("metadata", {}).get("python-versions") or "", python, path)
    if path.name == "uv.lock":
        _read_exported(reading, path, names, data, left_out)
        return
    packages: Sequence[Package] = data.get("packages") or data.get("package") or []
    named = index_options(path.parent / "pyproject.toml").values()
    if path.name in {"poetry.lock", "pdm.lock"} and any("groups" not in package for package in packages):
        # Older locks do not say which package wants which: they bound the versions of the project's own dependencies.
        reading.lines += reading.required_by(path.parent, names)
        reading.constraints += _lines(_one_of_each(packages, python), path.parent)
    else:
        reading.lines += _lines(_selected(data, packages, names, reading.marks, path), path.parent)
    reading.add_options([*named, *_indexes(packages)])


def _read_exported(reading: ReadRequirements, path: Path, names: Sequence[str], data: Package, left_out: str) -> None:
    root, own = path.parent, read_toml(reading.project / "pyproject.toml")
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


def _lies_in(package: Package, root: Path, reading: ReadRequirements) -> bool:
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
        raise unknown(missing, there, path)
    groups = {"main", "default", *data.get("default-groups", ()), *names}
    environment: dict[str, Any] = {**marks, "extras": frozenset(names), "dependency_groups": frozenset(groups)}

    def wanted(package: Package) -> bool:
        marker = _marker(package, groups)
        asked = not groups.isdisjoint(package.get("groups", groups))
        return asked and (not marker or any(Marker(marker).evaluate({**environment, "extra": e}) for e in ("", *names)))

    return [package for package in packages if wanted(package)]


def _marker(package: Package, groups: Collection[str]) -> str:
    """The marker of a locked package; poetry has one for each group where they differ."""
    marker = package.get("marker") or package.get("markers") or ""
    if isinstance(marker, str):
        return marker
    asked = [marker.get(group) for group in package["groups"] if group in groups]
    return " or ".join(f"({text})" for text in asked) if all(asked) else ""


def _one_of_each(packages: Sequence[Package], python: str) -> list[Package]:
    """The packages that are locked in one version for this Python."""
    bounds = ("python-versions", "requires_python")
    bound = [" ".join(package.get(key, "") for key in bounds).strip(" *") for package in packages]
    fitting = [one for one, text in zip(packages, bound, strict=True) if SpecifierSet(text).contains(f"{python}.99")]
    return [one for one in fitting if len({other["version"] for other in fitting if other["name"] == one["name"]}) == 1]


def _lines(packages: Sequence[Package], base: Path) -> list[RequirementLine]:
    """The pins of the packages, without folders of the project itself, which travel as files."""
    return [line for line in (_line(package, base) for package in packages) if line]


def _line(package: Package, base: Path) -> RequirementLine | None:
    places = [package.get(kind) for kind in ("source", "vcs", "archive", "directory")]
    name, source = canonicalize_name(package["name"]), next(filter(None, places), package)
    address = source.get("url") or source.get("git") or ""
    local = source.get("path") or (address if source.get("type") in {"file", "directory"} else "")
    commit = source.get("resolved_reference") or source.get("commit-id") or source.get("revision")
    part = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    if local:
        path = Path(os.path.normpath(base.absolute() / local))
        return None if is_part_of(path, base) else RequirementLine(name, url=url_of(path) + part)
    if address and source.get("type") != "legacy":
        return RequirementLine(name, url=f"git+{address}@{commit}{part}" if commit else address + part)
    return RequirementLine(name, specifier=f"=={package['version']}")


def _indexes(packages: Sequence[Package]) -> list[str]:
    sources = [package.get("source", {}) for package in packages]
    named = {source["url"] for source in sources if source.get("type") == "legacy"}
    named |= {package.get("index", _DEFAULT_INDEX) for package in packages}
    return sorted(f"--extra-index-url {url}" for url in named if url.rstrip("/") != _DEFAULT_INDEX)


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore] # pyright: ignore[reportMissingImports]


_METADATA = """
import glob, os, pathlib, shutil, subprocess, sys, tempfile
import build, build.env
source = sys.argv[1]
remains = lambda: {*glob.glob(source + "/*.egg-info"), *glob.glob(source + "/src/*.egg-info")}
def aloud(command, cwd=None, extra_environ=None):
    subprocess.run(command, cwd=cwd, env={**os.environ, **(extra_environ or {})}, stdout=sys.stderr, check=True)
before = remains()
try:
    with build.env.DefaultIsolatedEnv(installer="uv") as env, tempfile.TemporaryDirectory() as folder:
        builder = build.ProjectBuilder.from_isolated_env(env, source, runner=aloud)
        env.install(builder.build_system_requires)
        env.install(builder.get_requires_for_build("wheel"))
        print(pathlib.Path(builder.metadata_path(folder), "METADATA").read_text("utf-8"))
except Exception as error:
    words = getattr(error, "stderr", None) or getattr(error, "output", None) or b""
    sys.exit(words.decode() + str(error))
finally:
    for path in remains() - before:
        shutil.rmtree(path, ignore_errors=True)
"""
"""A script that prints a project's metadata, by the library `build`, and removes the files that setuptools leaves."""
_POETRY = """
import json, pathlib, sys
from poetry.core.factory import Factory
package = Factory().create_poetry(pathlib.Path(sys.argv[1])).package
text = lambda found: [one.to_pep_508(with_extras=False) for one in found]
names = package.dependency_group_names(include_optional=True) - {"main"}
project = {"name": package.name, "dependencies": text(one for one in package.requires if not one.is_optional())}
project["optional-dependencies"] = {name: text(found) for name, found in package.extras.items()}
groups = {name: text(package.dependency_group(name).dependencies) for name in names}
print(json.dumps({"project": project, "dependency-groups": groups}))
"""
"""A script that prints the two standard tables of a poetry project, by poetry's own library."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; empty where there is none.

    Raises:
        DependencyError: it can't be read, or is no TOML.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DependencyError(f"{path.name} can't be read: {error}", where=str(path)) from error
    return data


def declares_dependencies(path: Path) -> bool:
    """Whether a pyproject.toml declares dependencies, written out or by its build backend."""
    return "dependencies" in read_toml(path).get("project", {}) or is_dynamic(path.parent)


def is_dynamic(folder: Path) -> bool:
    """Whether only the build backend, or poetry, knows the dependencies of a folder's project."""
    data = read_toml(folder / "pyproject.toml")
    poetry = "dependencies" in data.get("tool", {}).get("poetry", {})
    return poetry or "dependencies" in data.get("project", {}).get("dynamic", ())


def project_name(path: Path) -> str:
    """The project's name in PEP 503 form, or ""."""
    return canonicalize_name(read_toml(path).get("project", {}).get("name", ""))


def dependencies(folder: Path, names: Sequence[str], marks: Mapping[str, str], uv: Uv) -> list[RequirementLine]:
    """The dependencies that the project in a folder declares, and those of these extras and groups.

    Args:
        names: of extras and PEP 735 groups; one of both kinds means both.
        marks: what markers are evaluated against.
        uv: runs uv.

    Raises:
        DependencyError: a line is no requirement; there is no such extra or group; or the metadata can't be built.
    """
    path = folder / "pyproject.toml"
    declared = _declared(folder, names, marks, uv)
    project, sources = declared.get("project", {}), _sources(path)
    optional = _by_name(project.get("optional-dependencies", {}))
    groups = _by_name(declared.get("dependency-groups", {}))
    wanted: set[str] = {canonicalize_name(name) for name in names}
    if missing := wanted - {*optional, *groups}:
        raise unknown(missing, {*optional, *groups}, path)
    lines: list[RequirementLine] = []
    pending, seen = [*project.get("dependencies", [])], {*wanted}
    for name in sorted(wanted):
        pending += [*optional.get(name, []), *_group(groups, name, path)]
    while pending:
        line = _declared_line(pending.pop(0), path)
        if line.name != canonicalize_name(project.get("name", "")):
            lines.append(_with_source(line, sources.get(line.name), path))
            continue
        # A project may name its own extras: all = ["project[plots,tests]"].
        for extra in set(line.extras) - seen:
            seen.add(extra)
            pending += optional.get(extra, [])
    return lines


def unknown(names: Collection[str], defined: Collection[str], path: Path) -> DependencyError:
    """The error about an unknown extra or group."""
    what = f"{path.name} has no extra or dependency group {' or '.join(sorted(names))}"
    return DependencyError(what, where=str(path), advice=f"it has {', '.join(sorted(defined)) or 'none'}")


def _by_name(table: Mapping[str, Any]) -> dict[str, Any]:
    return {canonicalize_name(name): lines for name, lines in table.items()}


def _group(groups: Mapping[str, Any], name: str, path: Path) -> list[str]:
    """The lines of a PEP 735 group, those of the groups that it includes with them."""
    try:
        return [str(line) for line in DependencyGroupResolver(groups).resolve(name)] if name in groups else []
    except Exception as error:  # a group of errors, for which older Pythons have no name
        words = "; ".join(str(one) for one in getattr(error, "exceptions", [error]))
        raise DependencyError(f"[dependency-groups]: {words}", where=str(path)) from error


def _declared(folder: Path, names: Sequence[str], marks: Mapping[str, str], uv: Uv) -> Mapping[str, Any]:
    """The `[project]` and `[dependency-groups]` tables of a folder's project, from its build backend where needed."""
    data = read_toml(folder / "pyproject.toml")
    poetry = data.get("tool", {}).get("poetry", {})

    def said(package: str, program: str) -> str:
        words = ["tool", "run", "--quiet", "--from", package, "python", "-I", "-c", program, str(folder)]
        return uv(words, folder)

    if (poetry and is_dynamic(folder)) or not {*names}.isdisjoint(poetry.get("group", {})):
        found: dict[str, Any] = json.loads(said("poetry-core>=2", _POETRY))
        return {**found, "dependency-groups": {**found["dependency-groups"], **data.get("dependency-groups", {})}}
    legacy = "project" not in data and (folder / "setup.py").is_file()
    if not legacy and not is_dynamic(folder):
        return data
    return {**data, "project": _from_metadata(said("build[uv]>=1.2", _METADATA), marks)}


def _from_metadata(text: str, marks: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a package as a `[project]` table; its markers are evaluated, and gone."""
    metadata, _ = parse_email(text)
    lines = [Requirement(line) for line in metadata.get("requires_dist", [])]

    def holding(extra: str) -> list[str]:
        kept = [line for line in lines if not line.marker or line.marker.evaluate({**marks, "extra": extra})]
        return [str(line).partition(";")[0].strip() for line in kept]

    extras = {extra: holding(extra) for extra in metadata.get("provides_extra", [])}
    return {"name": metadata.get("name", ""), "dependencies": holding(""), "optional-dependencies": extras}


def _sources(path: Path) -> dict[str, Any]:
    sources = read_toml(path).get("tool", {}).get("uv", {}).get("sources", {})
    return {canonicalize_name(name): source for name, source in sources.items()}


def _with_source(line: RequirementLine, source: Any, path: Path) -> RequirementLine:
    """The requirement with its source from `[tool.uv.sources]`, so that no namesake of the public index is installed.

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


def _declared_line(text: str, path: Path) -> RequirementLine:
    try:
        return RequirementLine.of(Requirement(text))
    except InvalidRequirement as error:
        what = hide_credentials(f"no requirement: {text}: {error}")
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
        number = next((f":{number}" for number, line in enumerate(lines, 1) if text in line), "")
        raise DependencyError(what, where=f"{path}{number}", advice=instead_of(text)) from error


def index_options(path: Path) -> dict[str, str]:
    """The indexes that the tables of uv, pdm and poetry name: the option that gives each to uv, by its address."""
    tool = read_toml(path).get("tool", {})
    uv = tool.get("uv", {})
    tables = (uv.get("index", []), *(tool.get(name, {}).get("source", []) for name in ("pdm", "poetry")))
    options = {
        index["url"]: f"--index-url {expand_variables(index['url'])}"
        if index.get("default") or index.get("name") == "pypi"
        else f"--extra-index-url {expand_variables(index['url'])}"
        for table in tables
        for index in table
        if "url" in index
    }
    if "index-url" in uv:
        options[uv["index-url"]] = f"--index-url {expand_variables(uv['index-url'])}"
    return options | {url: f"--extra-index-url {expand_variables(url)}" for url in uv.get("extra-index-url", [])}
