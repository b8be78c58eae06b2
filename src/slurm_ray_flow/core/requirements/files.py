"""Read requirements as pip writes them: a requirements.txt with all that it includes, or lines of one."""

from __future__ import annotations

import dataclasses
import tempfile
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local, pyproject
from slurm_ray_flow.core.requirements.model import Line, expand_variables, hide_credentials

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
"""What is passed on. uv verifies hashes wherever they stand, so `--require-hashes` adds nothing but a refusal
of what the run itself needs; `--prefer-binary` and `--use-feature` mean nothing to uv."""


@dataclasses.dataclass
class Reading:
    """What was read so far.

    Attributes:
        project: the user's project; its own folders are no packages, but what they require is wanted.
    """

    project: Path
    lines: list[Line] = dataclasses.field(default_factory=list)
    constraints: list[Line] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)
    seen: set[tuple[Path, bool]] = dataclasses.field(default_factory=set)

    def read_file(self, path: Path, constraint: bool = False, named_in: str = "") -> None:
        """Add what a file asks for, with its `-r` and `-c`; a file that includes itself is read once.

        Raises:
            DependencyError: it or a line of it can't be read; says where.
        """
        path = path.absolute()
        if (path.resolve(), constraint) in self.seen:
            return
        self.seen.add((path.resolve(), constraint))
        from pip_requirements_parser import PipError

        try:
            parsed = _parse(path)
        except (OSError, PipError, ValueError) as error:
            what = f"{path} can't be read: {hide_credentials(str(error)).replace('|n', ': ')}"
            raise DependencyError(what, where=named_in or str(path)) from error
        self._add(parsed, path.parent, str(path), constraint)

    def read_lines(self, lines: Sequence[str]) -> None:
        """Add requirement lines that were given as such.

        Raises:
            DependencyError: a line can't be read.
        """
        # The parser reads files alone (its from_string fails on a name it forgot to import).
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text("\n".join(lines), encoding="utf-8-sig")
            parsed = _parse(file)
        self._add(parsed, self.project, "environment=[...]", False)

    def _add(self, parsed: Any, base: Path, origin: str, constraint: bool) -> None:
        for wrong in parsed.invalid_lines:
            what = f"no requirement: {wrong.line}: {wrong.error_message}"
            raise DependencyError(hide_credentials(what), where=f"{origin}:{wrong.line_number}")
        place = _Place(base, origin, constraint)
        # In the order of the file: of two index options the first one is asked first.
        found = [(item.line_number, self._add_requirement, item) for item in parsed.requirements]
        found += [(item.line_number, self._add_option, item) for item in parsed.options]
        for _, add, item in sorted(found, key=lambda one: one[0]):
            add(item, place)

    def _add_option(self, item: Any, place: _Place) -> None:
        where = place.at(item.line_number)
        for kind, constraint in (("requirements", place.constraint), ("constraints", True)):
            for name in item.options.get(kind, ()):
                self._include(name, place.base, constraint, where)
        for kind, option in _INDEX_OPTIONS.items():
            for value in _values(item.options.get(kind)):
                shown = _find_links(value, place.base, self.project, where) if kind == "find_links" else value
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

    def _add_requirement(self, item: Any, place: _Place) -> None:
        where = place.at(item.line_number)
        if item.install_options or item.global_options:
            raise DependencyError("--install-option and --global-option are not supported by uv", where=where)
        lines = self._lines(item, place.base, where)
        (self.constraints if place.constraint else self.lines).extend(lines)

    def _lines(self, item: Any, base: Path, where: str) -> Iterable[Line]:
        if item.link is None:
            return [dataclasses.replace(Line.of(item.req), marker=_marker(item), hashes=tuple(item.hash_options))]
        address = _address(item)
        if item.link.is_vcs or (named := local.path_of(address)) is None:
            return [_linked(item, address)]
        path = local.resolve(str(named) if "://" in address else address, base, self.project, where)
        if not local.is_part_of(path, self.project):
            return [_linked(item, local.url_of(path), pyproject.project_name(path / "pyproject.toml"))]
        marker = _marker(item)
        required = self._required_by(path, sorted(item.extras))
        return [dataclasses.replace(line, marker=_both(line.marker, marker)) for line in required]

    def _required_by(self, folder: Path, extras: Sequence[str]) -> list[Line]:
        """What a folder of the project asks for: its code travels as files, what it stands on does not."""
        path = folder / "pyproject.toml"
        return pyproject.dependencies(path, extras) if pyproject.declares_dependencies(path) else []


@dataclasses.dataclass(frozen=True)
class _Place:
    base: Path
    origin: str
    constraint: bool

    def at(self, line_number: int) -> str:
        return f"{self.origin}:{line_number}"


def _parse(path: Path) -> Any:
    # Slow to import, and a run that reuses this interpreter's environment never comes here.
    from pip_requirements_parser import RequirementsFile

    return RequirementsFile.from_file(str(path))


def _values(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [""] if value else []


def _find_links(value: str, base: Path, project: Path, where: str) -> str:
    path = local.path_of(expand_variables(value))
    return value if path is None else str(local.resolve(str(path), base, project, where))


def _address(item: Any) -> str:
    url = item.req.url if item.req and item.req.url else item.link.url if item.link else ""
    return expand_variables(url)


def _marker(item: Any) -> str:
    return str(item.marker) if item.marker else ""


def _both(one: str, other: str) -> str:
    return f"({one}) and ({other})" if one and other else one or other


def _linked(item: Any, address: str, name: str = "") -> Line:
    """A requirement with an address: `#egg=` only ever named it, so the name goes to the front."""
    base, _, fragment = address.partition("#")
    parts = urllib.parse.parse_qs(fragment)
    kept = [f"{key}={values[0]}" for key, values in parts.items() if key not in {"egg", "name"}]
    return Line(
        name=canonicalize_name(item.req.name) if item.req else name,
        extras=tuple(sorted(canonicalize_name(extra) for extra in item.extras)),
        url=base + (f"#{'&'.join(kept)}" if kept else ""),
        marker=_marker(item),
        hashes=tuple(item.hash_options),
    )
