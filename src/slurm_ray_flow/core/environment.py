"""An environment's digest, and what one would have to change to become the wanted one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from slurm_ray_flow.core.requirements import Line, Wanted, hide_credentials
from slurm_ray_flow.core.requirements.local import path_of
from slurm_ray_flow.core.requirements.model import without_credentials
from slurm_ray_flow.remote.protocol import parse_json

Row = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class Held:
    """An environment that a cluster holds, as its whole.json says.

    Attributes:
        packages: version by name.
    """

    digest: str
    packages: Mapping[str, str]

    @classmethod
    def from_json(cls, text: str | bytes) -> Held:
        """Read a whole.json.

        Raises:
            ValueError: it is none.
        """
        try:
            fields = parse_json(text)
            return cls(str(fields["digest"]), {str(name): str(held) for name, held in fields["packages"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of an environment: {error!r}") from error


@dataclasses.dataclass(frozen=True)
class Difference:
    """What is wanted against what is there.

    Attributes:
        digest: of the wanted environment.
        present: the cluster holds exactly this one.
        add: name and specifier of what the most similar environment lacks.
        change: name, the version it holds, and what is wanted.
        keep: name, the version it holds, and what is wanted.
    """

    digest: str
    present: bool
    add: tuple[tuple[str, str], ...]
    change: tuple[tuple[str, str, str], ...]
    keep: tuple[tuple[str, str, str], ...]

    def rows(self) -> list[Row]:
        """Name, held, wanted, and what is to be done, by name."""
        rows = [(name, "", wish, "to add") for name, wish in self.add]
        rows += [(name, held, wish, "to change") for name, held, wish in self.change]
        rows += [(name, held, wish, "already there") for name, held, wish in self.keep]
        return sorted(rows)

    def to_json(self) -> str:
        """As text; holds no credentials."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def digest(wanted: Wanted, platform: str) -> str:
    """The name of the environment: 20 hexadecimal digits.

    Equal whatever the order, the spelling of names and versions, comments and the credentials of an index; different
    when a requirement, a bound, an index, the Python or the content of a local package is.

    Args:
        platform: such as "cp311-linux_x86_64".
    """
    local = dict(wanted.contents)
    content = {
        "requirements": sorted({_identity(Line.parse(line), local) for line in wanted.requirements}),
        "constraints": sorted({Line.parse(line).identity for line in wanted.constraints}),
        "options": [without_credentials(option) for option in wanted.options],
        "contents": sorted(local.values()),
        "python": wanted.python,
        "platform": platform,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _identity(line: Line, local: Mapping[str, str]) -> str:
    """By content alone for a local package: the same one at another path is the same environment."""
    path = path_of(line.url.partition("#")[0]) if line.url.startswith("file:") else None
    content = local.get(str(path))
    return dataclasses.replace(line, url=f"file:{content}").identity if content else line.identity


def difference(wanted: Wanted, held: Sequence[Held], platform: str) -> Difference:
    """Compare with the environment of the same digest, else with the most similar one, else with nothing."""
    name = digest(wanted, platform)
    lines = wanted.lines()
    for candidate in held:
        if candidate.digest == name:
            return _compare(name, True, lines, candidate.packages)
    found = [_compare(name, False, lines, candidate.packages) for candidate in held]
    return max(found, key=lambda one: len(one.keep), default=_compare(name, False, lines, {}))


def same_version(held: str, wanted_specifier: str) -> bool:
    """Whether an installed version is what is wanted, by PEP 440.

    `1.0` is `1.0.0`. A wanted public version takes any build of it: `2.9.1+cu130` is `==2.9.1`, since the code is
    the same and the label says for which machine it was built. A wanted label is exact: `2.9.1` is not
    `==2.9.1+cu130`.

    Args:
        wanted_specifier: such as ">=2,<3", or "" for any version, or a plain version.
    """
    try:
        plain = wanted_specifier[:1].isdigit()
        return SpecifierSet(f"=={wanted_specifier}" if plain else wanted_specifier).contains(
            Version(held), prereleases=True
        )
    except (InvalidVersion, InvalidSpecifier):
        return held == wanted_specifier.lstrip("=")


def _compare(name: str, present: bool, lines: Sequence[Line], packages: Mapping[str, str]) -> Difference:
    there: dict[str, str] = {canonicalize_name(package): version for package, version in packages.items()}
    found: dict[str, list[tuple[str, ...]]] = {"add": [], "change": [], "keep": []}
    for package, specifier, address in _wishes(lines):
        version, wish = there.get(package), address or specifier or "any"
        if present or (version is not None and not address and same_version(version, specifier)):
            found["keep"].append((package, version or "", wish))
        elif version is None:
            found["add"].append((package, wish))
        else:
            found["change"].append((package, version, wish))
    return Difference(name, present, **{kind: tuple(sorted(rows)) for kind, rows in found.items()})  # type: ignore[arg-type]


def _wishes(lines: Sequence[Line]) -> Iterator[tuple[str, str, str]]:
    """Name, specifier and address of each package: two lines on one package are one wish."""
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        by_name.setdefault(line.name or hide_credentials(line.url), []).append(line)
    for name, same in by_name.items():
        specifier = ",".join(sorted({line.specifier for line in same if line.specifier}))
        yield name, specifier, hide_credentials(next((line.url for line in same if line.url), ""))
