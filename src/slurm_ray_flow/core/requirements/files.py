"""Read requirements as pip writes them: a requirements.txt with all that it includes, or lines of one."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local, locks
from slurm_ray_flow.core.requirements.model import RequirementLine, Uv, expand_variables, hide_credentials, suggestion

_INDEX_OPTIONS = {
    "index_url": "--index-url",
    "extra_index_urls": "--extra-index-url",
    "find_links": "--find-links",
    "no_index": "--no-index",
    "no_binary": "--no-binary",
    "only_binary": "--only-binary",
    "trusted_hosts": "--trusted-host",
    "pre": "--pre",
}
"""The options of pip that uv gets. uv verifies hashes without `--require-hashes`, which would only refuse the packages
that each run needs; `--prefer-binary` and `--use-feature` mean nothing to uv."""
UV_OPTIONS = {
    *("--index-strategy", "--prerelease", "--resolution", "--exclude-newer", "--torch-backend", "--keyring-provider"),
}
"""Options that only uv has; uv gets these, too."""
_BEST_MATCH = "--index-strategy unsafe-best-match"
"""uv then looks for each package in all indexes and takes the best version, as pip does."""


@dataclasses.dataclass
class ReadRequirements:
    """The requirements that were read so far.

    Attributes:
        project: the user's project; its own folders are no packages, but their dependencies are wanted.
        marks: the environment for the evaluation of markers.
        uv: runs uv.
        beyond: whether other files were read than the project's lock and pyproject.toml.
        notes: messages for the user.
    """

    project: Path
    marks: dict[str, str]
    uv: Uv
    beyond: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    lines: list[RequirementLine] = dataclasses.field(default_factory=list)
    constraints: list[RequirementLine] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)
    seen: set[tuple[object, ...]] = dataclasses.field(default_factory=set)

    def read_file(self, path: Path, constraint: bool = False, named_in: str = "") -> None:
        """Add the requirements of a file, with those of its `-r` and `-c`; each file is read once.

        Raises:
            DependencyError: the file or a line of it can't be read; names the line.
        """
        path = path.absolute()
        if (path.resolve(), constraint) in self.seen:
            return
        self.seen.add((path.resolve(), constraint))
        self.beyond = True
        self._add(_parse(path, named_in or str(path)), _Origin(path.parent, str(path), constraint))

    def read_text(self, text: str, base: Path, origin: str) -> None:
        """Add the lines of a text, whose paths are seen from `base`.

        Raises:
            DependencyError: a line can't be read.
        """
        self.beyond = self.beyond or not origin.endswith("uv.lock")
        # The parser reads files alone (its from_string fails on a name it forgot to import).
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text(text, encoding="utf-8-sig")
            parsed = _parse(file, origin)
        self._add(parsed, _Origin(base, origin, False))

    def add_options(self, options: Sequence[str]) -> None:
        """Add index options; with several indexes uv looks in all of them, unless the user chose a strategy."""
        self.options += options
        several = any(option.startswith("--extra-index-url ") for option in self.options)
        if several and not any(option.startswith("--index-strategy ") for option in self.options):
            self.options.append(_BEST_MATCH)

    def required_by(self, folder: Path, names: Sequence[str]) -> list[RequirementLine]:
        """The dependencies of a project of the user, with these extras and groups; its code travels as files.

        Raises:
            DependencyError: the project can't be read, or has no such extra or group.
        """
        if (key := (folder.resolve(), *names)) in self.seen:
            return []
        self.seen.add(key)
        self.beyond = self.beyond or folder.resolve() != self.project.resolve() or locks.is_dynamic(folder)
        lines: list[RequirementLine] = []
        for line in locks.dependencies(folder, names, self.marks, self.uv):
            path = local.path_of(line.url) if line.url.startswith("file:") else None
            if path is None or not local.is_part_of(path, self.project):
                lines.append(line)
            else:
                lines += _with_marker(line.marker, self.required_by(path, line.extras))
        return lines

    def _add(self, parsed: Any, origin: _Origin) -> None:
        # In the order of the file: of two index options the first one is asked first.
        items = [(item.line_number, self._add_requirement, item) for item in parsed.requirements]
        items += [(item.line_number, self._add_option, item) for item in parsed.options]
        items += [(item.line_number, self._add_uv_option, item) for item in parsed.invalid_lines]
        for _, add, item in sorted(items, key=lambda numbered: numbered[0]):
            add(item, origin)
        self.add_options([])

    def _add_uv_option(self, item: Any, origin: _Origin) -> None:
        """Add a line that pip does not know, if it is an option of uv; raise DependencyError otherwise."""
        option = re.fullmatch(r"(--[\w-]+)[=\s]+([^\s#]+)\s*(#.*)?", item.line.strip())
        if option is None or option[1] not in UV_OPTIONS:
            what = hide_credentials(f"no requirement: {item.line}: {item.error_message}".replace("\0", ""))
            passed_on = ", ".join(sorted({*_INDEX_OPTIONS.values(), *UV_OPTIONS}))
            options = f"write one option to a line; those that are passed on to uv are {passed_on}"
            advice = options if item.line.lstrip().startswith("-") else suggestion(item.line)
            raise DependencyError(what, where=origin.at(item.line_number), advice=advice)
        self.options.append(f"{option[1]} {option[2]}")

    def _add_option(self, item: Any, origin: _Origin) -> None:
        where = origin.at(item.line_number)
        for kind, constraint in (("requirements", origin.constraint), ("constraints", True)):
            for name in item.options.get(kind, ()):
                self._include(name, origin.base, constraint, where)
        for kind, option in _INDEX_OPTIONS.items():
            for value in _values(item.options.get(kind)):
                shown = _find_links(value, origin.base, self.project, where) if kind == "find_links" else value
                self.options.append(f"{option} {expand_variables(shown)}".strip())

    def _include(self, name: str, base: Path, constraint: bool, where: str) -> None:
        name = expand_variables(name)
        if "://" in name and not name.startswith("file:"):
            raise DependencyError(
                f"a requirements file that lies elsewhere is not fetched: {hide_credentials(name)}",
                where=where,
                advice="keep a copy of it in the project",
            )
        self.read_file(base / (local.path_of(name) or name), constraint, where)

    def _add_requirement(self, item: Any, origin: _Origin) -> None:
        where = origin.at(item.line_number)
        if item.install_options or item.global_options:
            raise DependencyError("--install-option and --global-option are not supported by uv", where=where)
        lines = self._requirement_lines(item, origin, where)
        (self.constraints if origin.constraint else self.lines).extend(lines)

    def _requirement_lines(self, item: Any, origin: _Origin, where: str) -> list[RequirementLine]:
        if item.link is None:
            return [
                dataclasses.replace(RequirementLine.of(item.req), marker=_marker(item), hashes=tuple(item.hash_options))
            ]
        address = _url_of(item)
        if item.link.is_vcs or (named := local.path_of(address)) is None:
            return [_line_with_address(item, address)]
        path = local.resolve(str(named) if "://" in address else address, origin.base, self.project, where)
        if not local.is_part_of(path, self.project):
            return [_line_with_address(item, local.url_of(path), locks.project_name(path / "pyproject.toml"))]
        return _with_marker(_marker(item), self.required_by(path, sorted(item.extras)))


@dataclasses.dataclass(frozen=True)
class _Origin:
    base: Path
    origin: str
    constraint: bool

    def at(self, line_number: int) -> str:
        return f"{self.origin}:{line_number}"


def _parse(path: Path, where: str) -> Any:
    # Slow to import, and a run that reuses this interpreter's environment never comes here.
    from pip_requirements_parser import PipError, RequirementsFile

    try:
        return RequirementsFile.from_file(str(path))
    except (OSError, PipError, ValueError) as error:
        what = f"{path} can't be read: {hide_credentials(str(error)).replace('|n', ': ')}"
        advice = "save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise DependencyError(what, where=where, advice=advice) from error


def _values(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [""] if value else []


def _find_links(value: str, base: Path, project: Path, where: str) -> str:
    path = local.path_of(expand_variables(value))
    return value if path is None else str(local.resolve(str(path), base, project, where))


def _url_of(item: Any) -> str:
    url = item.req.url if item.req and item.req.url else item.link.url if item.link else ""
    return expand_variables(url)


def _marker(item: Any) -> str:
    return str(item.marker) if item.marker else ""


def _with_marker(marker: str, lines: Sequence[RequirementLine]) -> list[RequirementLine]:
    """The lines, each with this marker added to its own."""
    markers = [f"({line.marker}) and ({marker})" if line.marker and marker else line.marker or marker for line in lines]
    return [dataclasses.replace(line, marker=joined) for line, joined in zip(lines, markers, strict=True)]


def _line_with_address(item: Any, address: str, name: str = "") -> RequirementLine:
    """A requirement with an address; the name of an `#egg=` goes to the front."""
    base, _, fragment = address.partition("#")
    fragment_values = urllib.parse.parse_qs(fragment)
    fragment_parts = [f"{key}={values[0]}" for key, values in fragment_values.items() if key not in {"egg", "name"}]
    return RequirementLine(
        name=canonicalize_name(item.req.name) if item.req else name,
        extras=tuple(sorted(canonicalize_name(extra) for extra in item.extras)),
        url=base + (f"#{'&'.join(fragment_parts)}" if fragment_parts else ""),
        marker=_marker(item),
        hashes=tuple(item.hash_options),
    )
