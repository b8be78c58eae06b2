"""The packages of a run, and one requirement in its normal form."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, canonicalize_version

from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.protocol import parse_json

Uv = Callable[[Sequence[str], Path], str]
"""A function that runs uv with arguments in a folder, and gives its output; raises DependencyError with its stderr."""
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")


def hide_credentials(text: str) -> str:
    """The text with `user:password@` of each address in it replaced by `***@`."""
    return _CREDENTIALS.sub("***@", text)


def without_credentials(text: str) -> str:
    """The text with `user:password@` of each address in it left out."""
    return _CREDENTIALS.sub("", text)


def expand_variables(text: str) -> str:
    """`${NAME}` replaced by the environment variable of that name, as pip does; an unset one stays as it is."""
    return _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)


def suggestion(line: str) -> str:
    """The replacement to suggest for a line that is no requirement; "" where none is known."""
    if "\0" in line:
        return "save the file as UTF-8"
    if star := re.search(r"(>=|<=|~=|>|<)\s*([\w.]+)\.\*", line):
        return f"only == and != take .* (PEP 440): write {star[1]}{star[2]}{'' if '.' in star[2] else '.0'}"
    if conda := re.match(r"([\w.-]+)=([\w.]+)=\w+$", line.strip()):
        return f"conda writes it so: write {conda[1]}=={conda[2]}"
    return "that is conda's list: `pip list --format=freeze` writes pip's" if line.startswith("@EXPLICIT") else ""


@dataclasses.dataclass(frozen=True)
class RequirementLine:
    """One requirement.

    Attributes:
        name: in PEP 503 form; "" where only an address is known.
        extras: sorted, in PEP 503 form.
        specifier: versions as written, sorted; "" allows any.
        url: an address, or `file://` and a path; "" for a package from an index.
        marker: the condition under which the package is wanted; "" for always.
        hashes: `sha256:…`, any of which the archive may have.
    """

    name: str
    extras: tuple[str, ...] = ()
    specifier: str = ""
    url: str = ""
    marker: str = ""
    hashes: tuple[str, ...] = ()

    @classmethod
    def of(cls, requirement: Requirement) -> RequirementLine:
        """The normal form of a PEP 508 requirement."""
        return cls(
            name=canonicalize_name(requirement.name),
            extras=tuple(sorted(canonicalize_name(extra) for extra in requirement.extras)),
            specifier=",".join(sorted(map(str, requirement.specifier))),
            url=expand_variables(requirement.url or ""),
            marker=str(requirement.marker) if requirement.marker else "",
        )

    @classmethod
    def parse(cls, text: str) -> RequirementLine:
        """The requirement of a line in the form of `text`."""
        body, *hashes = text.split(" --hash=")
        if not body.startswith(("file:", "http:", "https:")) and not re.match(r"[a-z]+\+[a-z]+:", body):
            return dataclasses.replace(cls.of(Requirement(body)), hashes=tuple(hashes))
        url, _, marker = body.partition(" ; ")
        return cls("", url=url, marker=marker, hashes=tuple(hashes))

    @property
    def text(self) -> str:
        """The requirement as a line of a requirements file."""
        return self._text(self.specifier, self.url)

    @property
    def identity(self) -> str:
        """A text that two spellings of one requirement share: `1.0` and `1.0.0`, another password, another order."""
        return self._text(_canonical(self.specifier), without_credentials(self.url))

    @property
    def pin(self) -> str | None:
        """The one version it allows, or None."""
        match = re.fullmatch(r"={2,3}([^*,]+)", self.specifier)
        return match[1].strip() if match else None

    def applies(self, environment: dict[str, str]) -> bool:
        """Whether the requirement's marker is true in a marker environment."""
        return not self.marker or Marker(self.marker).evaluate({**environment, "extra": ""})

    def _text(self, specifier: str, url: str) -> str:
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        # Without a name there is no place for `name @`, and uv takes the address by itself.
        body = f"{self.name}{extras} @ {url}" if url and self.name else (url or f"{self.name}{extras}{specifier}")
        marker = f" ; {self.marker}" if self.marker else ""
        return body + marker + "".join(f" --hash={value}" for value in sorted(self.hashes))


def _canonical(specifier: str) -> str:
    return ",".join(sorted(_canonical_part(part.operator, part.version) for part in SpecifierSet(specifier)))


def _canonical_part(operator: str, version: str) -> str:
    if operator == "===":
        return operator + version
    # Trailing zeros count in `~=1.0` and `==1.0.*`, and in these alone.
    keeps_zeros = operator == "~=" or version.endswith(".*")
    stem = canonicalize_version(version.removesuffix(".*"), strip_trailing_zero=not keeps_zeros)
    return operator + stem + (".*" if version.endswith(".*") else "")


@dataclasses.dataclass(frozen=True, repr=False)
class Requirements:
    """The packages of a run. Its JSON may hold credentials of an index; its repr never does.

    Attributes:
        requirements: lines in normal form, sorted, as uv gets them.
        constraints: lines that bound versions without asking for a package.
        options: index options, one to an entry, in the user's order.
        source: the kind of file, as "uv.lock", "requirements.txt" or "pyproject.toml"; or "imports", or "given".
        python: major.minor of the cluster's Python.
        contents: the local paths among the requirements, each with a digest of its content.
        notes: messages for the user about the requirements.
        beyond: whether they depend on other files than the project's lock, its pyproject.toml and the imported code.
    """

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    options: tuple[str, ...]
    source: str
    python: str
    contents: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    beyond: bool = False

    def __repr__(self) -> str:
        return "Wanted" + hide_credentials(repr(dataclasses.astuple(self)))

    def to_json(self) -> str:
        """The requirements as JSON, with credentials of index options: only for files that the owner alone can read."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Requirements:
        """The requirements of a text that `to_json` wrote.

        Raises:
            ValueError: the text has another form.
        """
        fields = parse_json(text)
        try:
            lists = {
                name: tuple(map(str, fields[name])) for name in ("requirements", "constraints", "options", "notes")
            }
            contents = tuple((str(path), str(content)) for path, content in fields["contents"])
            return read_record(cls, {**fields, **lists, "contents": contents})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this says of no packages: {error!r}") from error

    def lines(self) -> list[RequirementLine]:
        """The requirements that apply on the cluster, parsed."""
        environment = marker_environment(self.python)
        return [line for line in map(RequirementLine.parse, self.requirements) if line.applies(environment)]


def marker_environment(python: str) -> dict[str, str]:
    """The environment for the evaluation of markers: Linux, this machine's processor, the cluster's Python.

    Args:
        python: major.minor. Its patch level is this interpreter's where the two agree, else 0.
    """
    from packaging.markers import default_environment

    environment: dict[str, str] = {name: str(value) for name, value in default_environment().items()}
    if environment["sys_platform"] != "linux":
        environment.update(platform_machine="x86_64", platform_release="", platform_version="")
    environment.update(os_name="posix", sys_platform="linux", platform_system="Linux")
    if environment["python_version"] != python:
        environment.update(
            python_version=python, python_full_version=f"{python}.0", implementation_version=f"{python}.0"
        )
    return environment
