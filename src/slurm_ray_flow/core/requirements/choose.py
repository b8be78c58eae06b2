"""The file that lists the wanted packages, and their union with the packages that each run needs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local, locks
from slurm_ray_flow.core.requirements.files import ReadRequirements
from slurm_ray_flow.core.requirements.installed import Scanned, read_installed
from slurm_ray_flow.core.requirements.locks import LOCKS, lock_of, read_lock
from slurm_ray_flow.core.requirements.model import (
    RequirementLine,
    Requirements,
    Uv,
    hide_credentials,
    marker_environment,
)


def read_conda(reading: ReadRequirements, path: Path, python: str) -> None:
    """Read an environment.yml: add the packages below `pip:`, and note those that only conda installs.

    Raises:
        DependencyError: it can't be read, or asks for another Python than the cluster's.
    """
    import yaml

    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
        dependencies = [
            item for key, value in (root.value if root else ()) if key.value == "dependencies" for item in value.value
        ]
        conda = [item for item in dependencies if isinstance(item, yaml.ScalarNode)]
        pip_parts = [part for item in dependencies if item not in conda for part in item.value]
        entries = {e.start_mark.line: e.value for key, value in pip_parts if key.value == "pip" for e in value.value}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise DependencyError(f"{path.name} can't be read: {error}", where=str(path)) from error
    for item in conda:
        _check_python(item.value, python, f"{path}:{item.start_mark.line + 1}")
    # Each entry in the line where the file has it, so that errors tell that line.
    text = "\n".join(entries.get(number, "") for number in range(max(entries, default=0) + 1))
    reading.read_text(text, path.parent, str(path))
    not_installed = [item.value for item in conda if not re.match(r"(\S+::)?(python|pip)\b(?!-)", item.value)]
    if not_installed:
        reading.notes.append(
            f"of {path.name} only the part below pip: is taken, not {', '.join(not_installed)}: packages that the code "
            "imports come from the package index in the version that is installed here; write any other below "
            "pip:, and take programs and libraries from a module of the cluster or a container"
        )


def _check_python(item: str, python: str, where: str) -> None:
    """Check the Python that an environment.yml asks for; conda's `python=3.11` means `python==3.11.*`."""
    pin = re.fullmatch(r"(?:\S+::)?python\s*([\s=<>!~].*)", item)
    bound = re.sub(r"^\s*={0,2}\s*(\d+\.\d+)\b.*", r"==\1.*", pin[1]) if pin else ""
    try:
        fits = any(SpecifierSet(bound).contains(f"{python}.{patch}") for patch in (0, 99))
    except InvalidSpecifier:
        return
    if not fits:
        what = f"{item} is asked for, and the run has Python {python}"
        raise DependencyError(what, where=where, advice="run it with a Python of that version, or change the line")


OURS = "slurm-ray-flow"
"""This package's own name, which is never installed on a cluster: each run brings the part that works there."""


PICKLER = "cloudpickle"
FILES = ("requirements.txt", "pyproject.toml", "environment.yml", "environment.yaml")
"""The files that "auto" looks for when there is no lock."""


def wanted(
    environment: str | Sequence[str],
    project: Path,
    distributions: Sequence[Scanned],
    *,
    python: str,
    uv: Uv,
    always: Sequence[str] = (),
    travelling: Iterable[Path] = (),
) -> Requirements:
    """The packages to install for a run; docs/projects.md explains the choice to users.

    Args:
        environment: "auto" takes the project's lock, else its requirements.txt, its pyproject.toml or its
            environment.yml, the first there is, else the scanned distributions; else a path of such a file, seen from
            the project, with extras and groups in brackets, or requirement lines.
        project: the user's project. Its own folders are never packages.
        distributions: the installed packages that the scan found.
        python: major.minor of the cluster's Python.
        uv: runs uv.
        always: pinned packages that each run needs. The user's own pin of the same package wins.
        travelling: the user's modules that travel as files.

    Raises:
        DependencyError: something can't be read, or two of the requirements exclude each other; names both.
    """
    marks = marker_environment(python)
    reading = ReadRequirements(project, marks, uv)
    with _as_dependency_error(project):
        source = _read_chosen(reading, environment, python, distributions)
        _remove_project(reading, project)
        _add_needed(reading, [RequirementLine.of(Requirement(text)) for text in always], marks)
        _check_conflicts(reading, marks)
    return Requirements(
        requirements=tuple(sorted({line.text for line in reading.lines})),
        constraints=tuple(sorted({line.text for line in reading.constraints})),
        options=tuple(dict.fromkeys(reading.options)),
        source=source,
        python=python,
        contents=_local_digests(reading, travelling),
        notes=tuple(reading.notes),
        beyond=reading.beyond,
    )


def _read_chosen(
    reading: ReadRequirements, environment: str | Sequence[str], python: str, distributions: Sequence[Scanned]
) -> str:
    """Read the file or the lines that list the wanted packages; gives their kind."""
    if not isinstance(environment, str):
        reading.read_text("\n".join(environment), reading.project, "environment=[...]")
        return "given"
    path, names = _chosen_file(environment, reading.project)
    if path is None:
        reading.lines = read_installed(distributions, reading.project, reading.marks, OURS)
        return "imports"
    with _as_dependency_error(path):
        _read(reading, path, names, python, distributions)
    return _kind(path)


@contextlib.contextmanager
def _as_dependency_error(path: Path) -> Iterator[None]:
    """Turn the failure of a malformed file, such as `name = true` in a pyproject.toml, into a DependencyError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        advice = "lock anew" if path.name in LOCKS else "compare it with the standard of its kind"
        raise DependencyError(f"{path.name} is damaged: {error!r}", where=str(path), advice=advice) from error


def _chosen_file(environment: str, project: Path) -> tuple[Path | None, list[str]]:
    """The file that lists the wanted packages, with its extras and groups; None where the imports decide."""
    lock = lock_of(project)
    if environment in {"auto", "isolated"}:
        files = [path for name in FILES if (path := project / name).is_file()]
        declaring = [file for file in files if file.name != "pyproject.toml" or locks.declares_dependencies(file)]
        return lock or next(iter(declaring), None), []
    brackets = re.fullmatch(r"(.+?)\[([^\[\]]+)\]", environment)
    name, names = (brackets[1], re.split(r"[\s,]+", brackets[2].strip())) if brackets else (environment, [])
    path = project / Path(name).expanduser()
    if not path.is_file() and lock is not None and name == lock.name:
        path = lock
    if path.is_file():
        return path, names
    raise DependencyError(
        f"there is no file {path}",
        where=f"environment={hide_credentials(environment)!r}",
        advice="give the path as seen from the project's folder, or requirement lines as a list",
    )


def _kind(path: Path) -> str:
    """The kind of a file by its name; an unknown name is a requirements.txt."""
    if path.name in {*LOCKS, "pyproject.toml", "setup.py"}:
        return path.name
    return "environment.yml" if path.suffix in {".yml", ".yaml"} else "requirements.txt"


def _read(
    reading: ReadRequirements, path: Path, names: Sequence[str], python: str, distributions: Sequence[Scanned]
) -> None:
    kind = _kind(path)
    if kind in LOCKS:
        read_lock(reading, path, names, python, OURS)
    elif kind in {"pyproject.toml", "setup.py"}:
        reading.lines = reading.required_by(path.parent, names)
        reading.options = list(locks.index_options(path.parent / "pyproject.toml").values())
    elif names:
        advice = "those of pyproject.toml and of a lock can be named so"
        raise DependencyError(f"{path.name} has no extras or groups", where=str(path), advice=advice)
    elif kind == "environment.yml":
        read_conda(reading, path, python)
        named = {line.name for line in reading.lines}
        installed = read_installed(distributions, reading.project, reading.marks, OURS)
        reading.lines += [line for line in installed if line.name not in named]
    else:
        reading.read_file(path)


def _remove_project(reading: ReadRequirements, project: Path) -> None:
    names = {OURS, locks.project_name(project / "pyproject.toml")} - {""}
    reading.lines = [line for line in reading.lines if line.name not in names and not _is_ours(line, project)]
    reading.constraints = [line for line in reading.constraints if line.name not in names]


def _is_ours(line: RequirementLine, project: Path) -> bool:
    path = local.path_of(line.url) if line.url.startswith("file:") else None
    return path is not None and local.is_part_of(path, project)


def _add_needed(reading: ReadRequirements, needed_lines: Iterable[RequirementLine], marks: dict[str, str]) -> None:
    """Add the packages that each run needs, unless the user pins them; never two lines for one package."""
    for needed in needed_lines:
        own_lines = [line for line in reading.lines if line.name == needed.name and line.applies(marks)]
        bounds = [line for line in reading.constraints if line.name == needed.name and line.applies(marks)]
        if any(line.pin or line.url for line in own_lines):
            _check_pickler(own_lines)
            reading.lines = [_with_extras(line, needed) if line in own_lines else line for line in reading.lines]
            continue
        if any(line.pin or line.url for line in bounds):
            needed = dataclasses.replace(needed, specifier="")  # noqa: PLW2901
        for line in (*own_lines, *bounds):
            if needed.pin and not SpecifierSet(line.specifier).contains(needed.pin, prereleases=True):
                raise _conflict(line.text, f"{needed.text}, which the run needs as it is here")
        extras = {extra for line in (needed, *own_lines) for extra in line.extras}
        reading.lines = [line for line in reading.lines if line not in own_lines]
        reading.lines.append(dataclasses.replace(needed, extras=tuple(sorted(extras))))


def _check_pickler(lines: Iterable[RequirementLine]) -> None:
    """Refuse a cloudpickle outside of the versions that this package needs: it could not read the pickles of home."""
    requirements = (Requirement(text) for text in importlib.metadata.requires(OURS) or ())
    bound = next((each.specifier for each in requirements if each.name == PICKLER), SpecifierSet())
    for line in lines:
        if line.name == PICKLER and line.pin and not bound.contains(line.pin, prereleases=True):
            raise _conflict(line.text, f"{PICKLER}{bound}, which the run needs")


def _with_extras(line: RequirementLine, needed: RequirementLine) -> RequirementLine:
    """The user's own pin with the extras that the run needs; a locked package stays as it is."""
    extras = tuple(sorted({*line.extras, *needed.extras}))
    return line if line.hashes or not line.name else dataclasses.replace(line, extras=extras)


def _check_conflicts(reading: ReadRequirements, marks: dict[str, str]) -> None:
    """Raise DependencyError for two lines that exclude each other, before uv does so on the cluster."""
    lines = [line for line in (*reading.lines, *reading.constraints) if line.name and line.applies(marks)]
    by_name: dict[str, list[RequirementLine]] = {}
    for line in lines:
        by_name.setdefault(line.name, []).append(line)
    for same_name in by_name.values():
        for line in same_name:
            for other in same_name:
                if line.pin and not SpecifierSet(other.specifier).contains(line.pin, prereleases=True):
                    raise _conflict(line.text, other.text)


def _conflict(first: str, second: str) -> DependencyError:
    return DependencyError(
        f"two requirements exclude each other: {hide_credentials(first)} and {hide_credentials(second)}",
        advice="change one of them in the requirements, or give environment=[...]",
    )


def _local_digests(reading: ReadRequirements, travelling: Iterable[Path]) -> tuple[tuple[str, str], ...]:
    links = [option.partition(" ")[2] for option in reading.options if option.startswith("--find-links ")]
    addresses = [line.url for line in reading.lines if line.url.startswith("file:")]
    paths = {path for url in (*addresses, *links) if (path := local.path_of(url.partition("#")[0])) is not None}
    modules = {file.resolve() for file in travelling} if paths else set()
    return tuple(sorted((str(path), local.content_digest(path, modules)) for path in paths))
