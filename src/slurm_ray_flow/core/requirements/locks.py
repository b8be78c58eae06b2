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
from collections import Counter
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
from slurm_ray_flow.core.requirements.model import RequirementLine, Uv, expand_variables, hide_credentials, suggestion

LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml")
"""The names of locks, in the order of the search."""
_DEFAULT_INDEX = "https://pypi.org/simple"  # never an option: a cluster may have a mirror as its own default
_EXPORT = (
    *("export", "--frozen", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-default-groups"),
    *("--no-emit-workspace", "--emit-index-url", "--emit-find-links"),
)
Package = Mapping[str, Any]


def lock_of(project: Path) -> Path | None:
    """The lock of a project: its own, else that of its uv workspace; None for none."""
    own = next((project / name for name in LOCKS if (project / name).is_file()), None)
    above = (folder / "uv.lock" for folder in project.resolve().parents)
    return own or next((lock for lock in above if lock.is_file() and _has_member(lock, project.resolve())), None)


def _has_member(lock: Path, project: Path) -> bool:
    relative = re.escape(os.path.relpath(project, lock.parent))
    return re.search(rf'\b(editable|virtual)\s*=\s*"{relative}"', lock.read_text(errors="replace")) is not None


def read_lock(reading: ReadRequirements, path: Path, names: Sequence[str], python: str, left_out: str) -> None:
    """Add the pins of the project's own dependencies, followed to the end, and the index options they need.

    Args:
        names: the extras and groups that are wanted. A tool's default groups, such as `dev`, are not.
        left_out: the name of a distribution that is left out with its dependencies.

    Raises:
        DependencyError: the lock is damaged, has no such group, or was not made for this Python.
    """
    data = read_toml(path)
    _check_python(data.get("requires-python") or data.get("metadata", {}).get("python-versions") or "", python, path)
    if path.name == "uv.lock":
        _read_exported(reading, path, names, data, left_out)
        return
    packages: Sequence[Package] = data.get("packages") or data.get("package") or []
    declared_indexes = index_options(path.parent / "pyproject.toml").values()
    if path.name in {"poetry.lock", "pdm.lock"} and any("groups" not in package for package in packages):
        # Older locks do not say which package wants which: they bound the versions of the project's own dependencies.
        reading.lines += reading.required_by(path.parent, names)
        reading.constraints += _pins(_locked_in_one_version(packages, python), path.parent)
    else:
        reading.lines += _pins(_wanted_packages(data, packages, names, reading.marks, path), path.parent)
    reading.add_options([*declared_indexes, *_indexes(packages)])


def _read_exported(reading: ReadRequirements, path: Path, names: Sequence[str], data: Package, left_out: str) -> None:
    root, pyproject = path.parent, read_toml(reading.project / "pyproject.toml")
    own_package = [package["name"] for package in data.get("package", []) if _is_project_of(package, root, reading)]
    members = own_package or data.get("manifest", {}).get("members", [])
    arguments = [word for name in members for word in ("--package", name)]
    arguments += ["--prune", left_out] if left_out not in members else []
    extras = pyproject.get("project", {}).get("optional-dependencies", {})
    arguments += [word for name in names for word in ("--extra" if name in extras else "--group", name)]
    text = reading.uv([*_EXPORT, *arguments], root)
    lines = [line for line in text.splitlines() if _DEFAULT_INDEX not in line and not _is_workspace_folder(line, root)]
    reading.read_text("\n".join(lines), root, str(path))
    applying = [line for line in reading.lines if line.applies(reading.marks)]
    reading.lines = [dataclasses.replace(line, marker="") for line in applying]


def _is_project_of(package: Package, root: Path, reading: ReadRequirements) -> bool:
    source = package.get("source", {})
    folder = source.get("editable", source.get("virtual"))
    return folder is not None and (root / folder).resolve() == reading.project.resolve()


def _is_workspace_folder(line: str, root: Path) -> bool:
    """Whether a line is a folder of the workspace, which travels as files."""
    path = line.removeprefix("-e ").partition(" ; ")[0]
    return path.startswith(".") and is_part_of(root / path, root)


def _check_python(required: str, python: str, path: Path) -> None:
    try:
        bounds = SpecifierSet(required)
    except InvalidSpecifier:
        return  # poetry has ways of its own to write it
    # With a high patch level `>=3.11.4` allows 3.11, and `<3.14` does not allow 3.14.
    if not any(bounds.contains(f"{python}.{patch}") for patch in (0, 99)):
        what, tool = f"{path.name} is for Python {required}, the cluster's is {python}", path.stem
        raise DependencyError(what, where=str(path), advice=f"widen requires-python and run `{tool} lock`")


def _wanted_packages(
    data: Package, packages: Sequence[Package], names: Sequence[str], marks: Mapping[str, str], path: Path
) -> list[Package]:
    defined = {group for package in packages for group in package.get("groups", ())}
    defined |= {*data.get("extras", ()), *data.get("dependency-groups", ())}
    if missing := {*names} - defined:
        raise unknown_group(missing, defined, path)
    groups = {"main", "default", *data.get("default-groups", ()), *names}
    environment: dict[str, Any] = {**marks, "extras": frozenset(names), "dependency_groups": frozenset(groups)}

    def is_selected(package: Package) -> bool:
        marker = _marker(package, groups)
        grouped = not groups.isdisjoint(package.get("groups", groups))
        return grouped and (
            not marker or any(Marker(marker).evaluate({**environment, "extra": e}) for e in ("", *names))
        )

    return [package for package in packages if is_selected(package)]


def _marker(package: Package, groups: Collection[str]) -> str:
    """The marker of a locked package; poetry has one for each group where they differ."""
    marker = package.get("marker") or package.get("markers") or ""
    if isinstance(marker, str):
        return marker
    markers = [marker.get(group) for group in package["groups"] if group in groups]
    return " or ".join(f"({text})" for text in markers) if all(markers) else ""


def _locked_in_one_version(packages: Sequence[Package], python: str) -> list[Package]:
    """The packages that are locked in one version for this Python."""
    bounds = ("python-versions", "requires_python")
    pythons = [" ".join(package.get(key, "") for key in bounds).strip(" *") for package in packages]
    usable = [item for item, text in zip(packages, pythons, strict=True) if SpecifierSet(text).contains(f"{python}.99")]
    versions = Counter(name for name, _ in {(package["name"], package["version"]) for package in usable})
    return [package for package in usable if versions[package["name"]] == 1]


def _pins(packages: Sequence[Package], base: Path) -> list[RequirementLine]:
    """The pins of the packages, without folders of the project itself, which travel as files."""
    return [line for line in (_pin(package, base) for package in packages) if line]


def _pin(package: Package, base: Path) -> RequirementLine | None:
    sources = [package.get(kind) for kind in ("source", "vcs", "archive", "directory")]
    name, source = canonicalize_name(package["name"]), next(filter(None, sources), package)
    address = source.get("url") or source.get("git") or ""
    local_path = source.get("path") or (address if source.get("type") in {"file", "directory"} else "")
    commit = source.get("resolved_reference") or source.get("commit-id") or source.get("revision")
    subdirectory = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
    if local_path:
        path = Path(os.path.normpath(base.absolute() / local_path))
        return None if is_part_of(path, base) else RequirementLine(name, url=url_of(path) + subdirectory)
    if address and source.get("type") != "legacy":
        return RequirementLine(name, url=f"git+{address}@{commit}{subdirectory}" if commit else address + subdirectory)
    return RequirementLine(name, specifier=f"=={package['version']}")


def _indexes(packages: Sequence[Package]) -> list[str]:
    sources = [package.get("source", {}) for package in packages]
    urls = {source["url"] for source in sources if source.get("type") == "legacy"}
    urls |= {package.get("index", _DEFAULT_INDEX) for package in packages}
    return sorted(f"--extra-index-url {url}" for url in urls if url.rstrip("/") != _DEFAULT_INDEX)


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
    """The content of a TOML file; empty if the file is missing.

    Raises:
        DependencyError: the file can't be read, or is no TOML.
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
        names: the names of extras and PEP 735 groups; a name of both kinds means both.
        marks: the environment for the evaluation of markers.
        uv: runs uv.

    Raises:
        DependencyError: a line is no requirement; there is no such extra or group; or the metadata can't be built.
    """
    path = folder / "pyproject.toml"
    declared = _declared_tables(folder, names, marks, uv)
    project, sources = declared.get("project", {}), _sources(path)
    optional = _normalized_names(project.get("optional-dependencies", {}))
    groups = _normalized_names(declared.get("dependency-groups", {}))
    wanted_names: set[str] = {canonicalize_name(name) for name in names}
    if missing := wanted_names - {*optional, *groups}:
        raise unknown_group(missing, {*optional, *groups}, path)
    lines: list[RequirementLine] = []
    pending, seen_extras = [*project.get("dependencies", [])], {*wanted_names}
    for name in sorted(wanted_names):
        pending += [*optional.get(name, []), *_group(groups, name, path)]
    while pending:
        line = _declared_line(pending.pop(0), path)
        if line.name != canonicalize_name(project.get("name", "")):
            lines.append(_with_source(line, sources.get(line.name), path))
            continue
        # A project may name its own extras: all = ["project[plots,tests]"].
        for extra in set(line.extras) - seen_extras:
            seen_extras.add(extra)
            pending += optional.get(extra, [])
    return lines


def unknown_group(names: Collection[str], defined: Collection[str], path: Path) -> DependencyError:
    """The error about an unknown extra or group."""
    what = f"{path.name} has no extra or dependency group {' or '.join(sorted(names))}"
    return DependencyError(what, where=str(path), advice=f"it has {', '.join(sorted(defined)) or 'none'}")


def _normalized_names(table: Mapping[str, Any]) -> dict[str, Any]:
    return {canonicalize_name(name): lines for name, lines in table.items()}


def _group(groups: Mapping[str, Any], name: str, path: Path) -> list[str]:
    """The lines of a PEP 735 group, with those of included groups."""
    try:
        return [str(line) for line in DependencyGroupResolver(groups).resolve(name)] if name in groups else []
    except Exception as error:  # a group of errors, for which older Pythons have no name
        messages = "; ".join(str(cause) for cause in getattr(error, "exceptions", [error]))
        raise DependencyError(f"[dependency-groups]: {messages}", where=str(path)) from error


def _declared_tables(folder: Path, names: Sequence[str], marks: Mapping[str, str], uv: Uv) -> Mapping[str, Any]:
    """The `[project]` and `[dependency-groups]` tables of a folder's project, from its build backend where needed."""
    data = read_toml(folder / "pyproject.toml")
    poetry = data.get("tool", {}).get("poetry", {})

    def ask_backend(package: str, program: str) -> str:
        arguments = ["tool", "run", "--quiet", "--from", package, "python", "-I", "-c", program, str(folder)]
        return uv(arguments, folder)

    if (poetry and is_dynamic(folder)) or not {*names}.isdisjoint(poetry.get("group", {})):
        tables: dict[str, Any] = json.loads(ask_backend("poetry-core>=2", _POETRY))
        return {**tables, "dependency-groups": {**tables["dependency-groups"], **data.get("dependency-groups", {})}}
    legacy = "project" not in data and (folder / "setup.py").is_file()
    if not legacy and not is_dynamic(folder):
        return data
    return {**data, "project": _from_metadata(ask_backend("build[uv]>=1.2", _METADATA), marks)}


def _from_metadata(text: str, marks: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a package as a `[project]` table, with evaluated markers removed."""
    metadata, _ = parse_email(text)
    lines = [Requirement(line) for line in metadata.get("requires_dist", [])]

    def requirements_of(extra: str) -> list[str]:
        applying = [line for line in lines if not line.marker or line.marker.evaluate({**marks, "extra": extra})]
        return [str(line).partition(";")[0].strip() for line in applying]

    extras = {extra: requirements_of(extra) for extra in metadata.get("provides_extra", [])}
    return {"name": metadata.get("name", ""), "dependencies": requirements_of(""), "optional-dependencies": extras}


def _sources(path: Path) -> dict[str, Any]:
    sources = read_toml(path).get("tool", {}).get("uv", {}).get("sources", {})
    return {canonicalize_name(name): source for name, source in sources.items()}


def _with_source(line: RequirementLine, source: Any, path: Path) -> RequirementLine:
    """The requirement with its source from `[tool.uv.sources]`, so that no namesake of the public index is installed.

    Raises:
        DependencyError: the source has a form that only uv itself can follow.
    """
    if source is None or (isinstance(source, dict) and "index" in source):
        return line
    kind = next((kind for kind in ("git", "url", "path") if isinstance(source, dict) and kind in source), None)
    if kind is None or "marker" in source:
        what = f"[tool.uv.sources] of {line.name} can't be followed without a lock"
        raise DependencyError(what, where=str(path), advice="run `uv lock`: the lock is read first, also a workspace's")
    subdirectory = f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else ""
    if kind == "path":
        package_path = local.resolve(source["path"], path.parent, path.parent, str(path))
        return dataclasses.replace(line, specifier="", url=local.url_of(package_path))
    revision = next((f"@{source[key]}" for key in ("rev", "tag", "branch") if key in source), "")
    address = f"git+{source['git']}{revision}" if kind == "git" else source["url"]
    return dataclasses.replace(line, specifier="", url=expand_variables(address) + subdirectory)


def _declared_line(text: str, path: Path) -> RequirementLine:
    try:
        return RequirementLine.of(Requirement(text))
    except InvalidRequirement as error:
        what = hide_credentials(f"no requirement: {text}: {error}")
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
        number = next((f":{number}" for number, line in enumerate(lines, 1) if text in line), "")
        raise DependencyError(what, where=f"{path}{number}", advice=suggestion(text)) from error


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
