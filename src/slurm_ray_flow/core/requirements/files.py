"""Read requirements as pip writes them: a requirements.txt with all that it includes, or lines of one."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import local, pyproject
from slurm_ray_flow.core.requirements.model import Line, Uv, expand_variables, hide_credentials

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
_UV_OPTIONS = {
    "--index-strategy": ("first-index", "unsafe-first-match", "unsafe-best-match"),
    "--prerelease": ("disallow", "allow", "if-necessary", "explicit", "if-necessary-or-explicit"),
    "--resolution": ("highest", "lowest", "lowest-direct"),
    "--exclude-newer": (),
    "--torch-backend": (),
    "--keyring-provider": ("disabled", "subprocess"),
}
"""Options that uv alone has, with the values that they may have where these are few. They are passed on as well."""
_UV_INDEXES = {"--default-index": "--index-url", "--index": "--extra-index-url"}
BEST_MATCH = "--index-strategy unsafe-best-match"
"""All indexes are asked for each package, and the best of all versions is taken, as pip does it."""


@dataclasses.dataclass
class Reading:
    """What was read so far.

    Attributes:
        project: the user's project; its own folders are no packages, but what they require is wanted.
        marks: what markers are evaluated against.
        uv: runs uv.
        beyond: whether more was read than the project's lock and pyproject.toml.
        notes: what the user is told.
    """

    project: Path
    marks: dict[str, str]
    uv: Uv
    beyond: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    lines: list[Line] = dataclasses.field(default_factory=list)
    constraints: list[Line] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)
    seen: set[tuple[Path, bool]] = dataclasses.field(default_factory=set)
    _followed: set[tuple[Path, tuple[str, ...]]] = dataclasses.field(default_factory=set)

    def read_file(self, path: Path, constraint: bool = False, named_in: str = "") -> None:
        """Add what a file asks for, with its `-r` and `-c`; a file that includes itself is read once.

        Raises:
            DependencyError: it or a line of it can't be read; says where.
        """
        path = path.absolute()
        if (path.resolve(), constraint) in self.seen:
            return
        self.seen.add((path.resolve(), constraint))
        self.beyond = True
        self._add(_parse(path, named_in or str(path)), _Place(path.parent, str(path), constraint))

    def read_text(self, text: str, base: Path, origin: str, locked: bool = False) -> None:
        """Add the lines of a text.

        Args:
            text: as a file has it.
            base: the folder that its paths are seen from.
            origin: what the text is from, for errors.
            locked: the text is complete: what its folders require stands in it.

        Raises:
            DependencyError: a line can't be read.
        """
        # The parser reads files alone (its from_string fails on a name it forgot to import).
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text(text, encoding="utf-8-sig")
            parsed = _parse(file, origin)
        self._add(parsed, _Place(base, origin, locked=locked))

    def read_project(self, folder: Path, names: Sequence[str]) -> None:
        """Add what a folder's pyproject.toml or setup.py asks for, and these extras and groups of it.

        Raises:
            DependencyError: it can't be read, or has no such extra or group.
        """
        self.lines += self._required_by(folder, names)

    def _add(self, parsed: Any, place: _Place) -> None:
        # In the order of the file: of two index options the first one is asked first.
        found = [(item.line_number, self._add_requirement, item) for item in parsed.requirements]
        found += [(item.line_number, self._add_option, item) for item in parsed.options]
        found += [(item.line_number, self._add_unknown, item) for item in parsed.invalid_lines]
        for _, add, item in sorted(found, key=lambda one: one[0]):
            add(item, place)
        if any(option.startswith("--extra-index-url ") for option in self.options) and not any(
            option.startswith("--index-strategy ") for option in self.options
        ):
            self.options.append(BEST_MATCH)

    def _add_unknown(self, item: Any, place: _Place) -> None:
        """A line that pip does not know: an option of uv's own, or an error."""
        where, text = place.at(item.line_number), hide_credentials(item.line)
        option, value = _option(item.line)
        if option in _UV_INDEXES:
            address = re.sub(r"^[\w.-]+=(?=\w+:)", "", value)
            self.options.append(f"{_UV_INDEXES[option]} {expand_variables(address)}")
        elif option in _UV_OPTIONS:
            allowed = _UV_OPTIONS[option]
            if not value or (allowed and value not in allowed):
                what = f"{option} does not take {value!r}"
                raise DependencyError(what, where=where, advice=f"write one of {', '.join(allowed)}" if allowed else "")
            self.options.append(f"{option} {value}")
        else:
            what = f"no requirement: {text}: {hide_credentials(item.error_message)}"
            raise DependencyError(what, where=where, advice=_advice(item.line))

    def _add_option(self, item: Any, place: _Place) -> None:
        where = place.at(item.line_number)
        if _option(item.line)[0] in _UV_INDEXES:  # which the parser takes for a short form of `--index-url`
            self._add_unknown(item, place)
            return
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
        lines = self._lines(item, place, where)
        (self.constraints if place.constraint else self.lines).extend(lines)

    def _lines(self, item: Any, place: _Place, where: str) -> list[Line]:
        if item.link is None:
            return [dataclasses.replace(Line.of(item.req), marker=_marker(item), hashes=tuple(item.hash_options))]
        address = _address(item)
        if item.link.is_vcs or (named := local.path_of(address)) is None:
            return [_linked(item, address)]
        _check_conda(item, named, where)
        path = local.resolve(str(named) if "://" in address else address, place.base, self.project, where)
        if not local.is_part_of(path, place.base if place.locked else self.project):
            return [_linked(item, local.url_of(path), pyproject.project_name(path / "pyproject.toml"))]
        required = [] if place.locked else self._required_by(path, sorted(item.extras))
        return [dataclasses.replace(line, marker=_both(line.marker, _marker(item))) for line in required]

    def _required_by(self, folder: Path, names: Sequence[str]) -> list[Line]:
        """What a folder of the project asks for: its code travels as files, what it stands on does not."""
        key = (folder.resolve(), tuple(names))
        if key in self._followed:
            return []
        self._followed.add(key)
        self.beyond = self.beyond or folder.resolve() != self.project.resolve() or pyproject.is_dynamic(folder)
        found: list[Line] = []
        for line in pyproject.dependencies(folder, names, self.marks, self.uv):
            path = local.path_of(line.url.partition("#")[0]) if line.url.startswith("file:") else None
            if path is None or not local.is_part_of(path, self.project):
                found.append(line)
                continue
            required = self._required_by(path, line.extras)
            found += [dataclasses.replace(one, marker=_both(one.marker, line.marker)) for one in required]
        return found


@dataclasses.dataclass(frozen=True)
class _Place:
    base: Path
    origin: str
    constraint: bool = False
    locked: bool = False

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


def _option(line: str) -> tuple[str, str]:
    """An option and its value: `--option value` or `--option=value`."""
    found = re.fullmatch(r"(--[\w-]+)(?:\s*=\s*|\s+|$)(.*)", line.strip())
    try:
        return (found[1], " ".join(shlex.split(found[2], comments=True))) if found else ("", "")
    except ValueError:
        return "", ""  # a quotation mark that is not closed


def _advice(line: str) -> str:
    """What to write instead of a line that is no requirement."""
    if line.lstrip().startswith("-"):
        taken = (*_INDEX_OPTIONS.values(), *_UV_OPTIONS, *_UV_INDEXES)
        return f"one option to a line; those that are passed on to uv are {', '.join(sorted(taken))}"
    star = re.search(r"(>=|<=|~=|>|<)\s*([\w.]+)\.\*", line)
    if star:
        return f"only == and != take .* (PEP 440): write {star[1]}{star[2]}"
    conda = re.match(r"([\w.-]+)=([\w.]+)=\w+$", line.strip())
    return f"conda writes it so; write {conda[1]}=={conda[2]}" if conda else ""


def _check_conda(item: Any, named: Path, where: str) -> None:
    if item.req and item.req.name and named.is_absolute() and not named.exists():
        raise DependencyError(
            f"{item.req.name} is from a folder that is not here: {named}",
            where=where,
            advice=f"conda's packages name the folder where they were built: write {item.req.name}==VERSION; "
            "`pip list --format=freeze` writes all of them so",
        )


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
