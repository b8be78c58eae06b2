"""The digest of an environment, and the difference between a wanted environment and those on a cluster."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from slurm_ray_flow.core.requirements import RequirementLine, Requirements, hide_credentials
from slurm_ray_flow.core.requirements.local import path_of
from slurm_ray_flow.core.requirements.model import without_credentials
from slurm_ray_flow.remote.shared.protocol import parse_json

Row = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class HeldEnvironment:
    """An environment on a cluster, from its whole.json.

    Attributes:
        packages: version by name.
    """

    digest: str
    packages: Mapping[str, str]

    @classmethod
    def from_json(cls, text: str | bytes) -> HeldEnvironment:
        """Read a whole.json.

        Raises:
            ValueError: the text is no record of an environment.
        """
        try:
            fields = parse_json(text)
            return cls(str(fields["digest"]), {str(name): str(version) for name, version in fields["packages"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of an environment: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between the wanted packages and those of the most similar environment on the cluster.

    Attributes:
        digest: the digest of the wanted environment.
        present: whether the cluster has exactly this environment.
        add: name and specifier of each package that the most similar environment lacks.
        change: name, present version and wanted version of each package that changes.
        keep: name, present version and wanted version of each package that stays.
    """

    digest: str
    present: bool
    add: tuple[tuple[str, str], ...]
    change: tuple[tuple[str, str, str], ...]
    keep: tuple[tuple[str, str, str], ...]

    def rows(self) -> list[Row]:
        """A row for each package, sorted: its name, the version there, the wanted version, the change."""
        rows = [(name, "", wish, "to add") for name, wish in self.add]
        rows += [(name, held, wish, "to change") for name, held, wish in self.change]
        rows += [(name, held, wish, "already there") for name, held, wish in self.keep]
        return sorted(rows)

    def to_json(self) -> str:
        """As text; holds no credentials."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def digest(requirements: Requirements, platform: str) -> str:
    """The name of the environment: 20 hexadecimal digits.

    The order of requirements, the spelling of names and versions, comments and credentials of an index do not count;
    requirements, constraints, indexes, the Python and the content of local packages do.

    Args:
        platform: such as "cp311-linux_x86_64".
    """
    contents = dict(requirements.contents)
    content = {
        "requirements": sorted(
            {_identity(RequirementLine.parse(line), contents) for line in requirements.requirements}
        ),
        "constraints": sorted({RequirementLine.parse(line).identity for line in requirements.constraints}),
        "options": [without_credentials(option) for option in requirements.options],
        "contents": sorted(contents.values()),
        "python": requirements.python,
        "platform": platform,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _identity(line: RequirementLine, local: Mapping[str, str]) -> str:
    """The part of a requirement that counts for the digest: for a local package its content, not its path."""
    path = path_of(line.url.partition("#")[0]) if line.url.startswith("file:") else None
    content = local.get(str(path))
    return dataclasses.replace(line, url=f"file:{content}").identity if content else line.identity


def difference(requirements: Requirements, environments: Sequence[HeldEnvironment], platform: str) -> Difference:
    """The difference to the environment of the same digest, else to the most similar one, else to an empty one."""
    name = digest(requirements, platform)
    lines = requirements.lines()
    for candidate in environments:
        if candidate.digest == name:
            return _compare(name, True, lines, candidate.packages)
    differences = [_compare(name, False, lines, candidate.packages) for candidate in environments]
    return max(differences, key=lambda each: len(each.keep), default=_compare(name, False, lines, {}))


def same_version(installed: str, wanted_specifier: str) -> bool:
    """Whether an installed version meets a specifier, by PEP 440.

    `1.0` is `1.0.0`. A public version is met by any build of it: `2.9.1+cu130` is `==2.9.1`, since the code is the same
    and the label names the machine it was built for. A label must be equal: `2.9.1` is not `==2.9.1+cu130`.

    Args:
        wanted_specifier: such as ">=2,<3", or "" for any version, or a plain version.
    """
    try:
        is_plain_version = wanted_specifier[:1].isdigit()
        return SpecifierSet(f"=={wanted_specifier}" if is_plain_version else wanted_specifier).contains(
            Version(installed), prereleases=True
        )
    except (InvalidVersion, InvalidSpecifier):
        return installed == wanted_specifier.lstrip("=")


def _compare(name: str, present: bool, lines: Sequence[RequirementLine], packages: Mapping[str, str]) -> Difference:
    held_versions: dict[str, str] = {canonicalize_name(package): version for package, version in packages.items()}
    changes: dict[str, list[tuple[str, ...]]] = {"add": [], "change": [], "keep": []}
    for package, specifier, address in _wanted_versions(lines):
        version, wish = held_versions.get(package), address or specifier or "any"
        if present or (version is not None and not address and same_version(version, specifier)):
            changes["keep"].append((package, version or "", wish))
        elif version is None:
            changes["add"].append((package, wish))
        else:
            changes["change"].append((package, version, wish))
    return Difference(name, present, **{kind: tuple(sorted(rows)) for kind, rows in changes.items()})  # type: ignore[arg-type]


def _wanted_versions(lines: Sequence[RequirementLine]) -> Iterator[tuple[str, str, str]]:
    """Name, specifier and address of each package; two lines about one package are joined."""
    by_name: dict[str, list[RequirementLine]] = {}
    for line in lines:
        by_name.setdefault(line.name or hide_credentials(line.url), []).append(line)
    for name, same_name in by_name.items():
        specifier = ",".join(sorted({line.specifier for line in same_name if line.specifier}))
        yield name, specifier, hide_credentials(next((line.url for line in same_name if line.url), ""))


_UV_GLIBC = (17, 28, *range(31, 41))
"""The minor versions of glibc that uv has a platform name for."""
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclasses.dataclass(frozen=True)
class WheelPlatform:
    """The platform of a cluster's Python, by which wheels are chosen.

    Attributes:
        python: its full version, "3.11.7".
        machine: "x86_64".
        libc: "glibc 2.36"; anything else is taken for musl.
    """

    python: str
    machine: str
    libc: str

    @classmethod
    def of(cls, python: str, platform: str, libc: str) -> WheelPlatform:
        """The platform from the cluster's facts; `platform` is such as "cp311-linux_x86_64"."""
        return cls(python, platform.partition("linux_")[2] or platform.rpartition("_")[2], libc)

    @property
    def version(self) -> str:
        """The major and minor version of Python."""
        return ".".join(self.python.split(".")[:2])

    @property
    def uv_platform(self) -> str:
        """The platform's name for `uv pip --python-platform`."""
        usable = [minor for minor in _UV_GLIBC if minor <= self._glibc]
        if not self._glibc:
            return f"{self.machine}-unknown-linux-musl"
        return f"{self.machine}-manylinux_2_{usable[-1]}" if usable else f"{self.machine}-manylinux2014"

    @property
    def platforms(self) -> list[str]:
        """The platform tags of its wheels, the best first."""
        if not self._glibc:
            return [f"musllinux_1_{minor}_{self.machine}" for minor in (2, 1)]
        tags = []
        for minor in range(self._glibc, 4, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _OLD_NAMES:
                tags.append(f"{_OLD_NAMES[minor]}_{self.machine}")
        return [*tags, f"linux_{self.machine}"]

    def takes(self, wheel: str) -> bool:
        """Whether a wheel of this file name can be used there."""
        return not parse_wheel_filename(wheel)[3].isdisjoint(self._tags())

    def _tags(self) -> set[Tag]:
        major, minor = (int(part) for part in self.version.split("."))
        pure = {Tag(name, "none", "any") for name in (f"py{major}", f"cp{major}{minor}", f"py{major}{minor}")}
        older = {Tag(f"py{major}{number}", "none", "any") for number in range(minor)}
        return pure | older | set(cpython_tags((major, minor), platforms=self.platforms))

    @property
    def _glibc(self) -> int:
        match = re.fullmatch(r"glibc 2\.(\d+)", self.libc)
        return int(match[1]) if match else 0


def is_local(line: str) -> bool:
    """Whether a requirement is a path at home."""
    return RequirementLine.parse(line).url.startswith("file:")


def local_links(options: Sequence[str]) -> list[str]:
    """The values of `--find-links` that are folders at home."""
    values = [option.partition(" ")[2] for option in options if option.startswith("--find-links ")]
    return [value for value in values if "://" not in value or value.startswith("file:")]


def without_wheel(output: str) -> str:
    """The requirement without a wheel for the target, from pip's output; "" where pip names none."""
    match = re.search(r"No matching distribution found for (\S+)", output)
    return match[1] if match else ""
