"""Requirements from the packages installed here: the scanned distributions, and all that they require."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from slurm_ray_flow.core.requirements import local
from slurm_ray_flow.core.requirements.model import RequirementLine

_VERSION_CONTROL = re.compile(r"(git|hg|svn|bzr)\+")
_ARCHIVE = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Scanned(Protocol):
    """A distribution that the scan found.

    `origin` is where it was installed from when that was no index: a repository's address and commit, or a path.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def origin(self) -> str | None: ...


def read_installed(
    distributions: Iterable[Scanned], project: Path, environment: dict[str, str], left_out: str
) -> list[RequirementLine]:
    """The installed versions of the distributions and of their dependencies.

    A requirement that is not installed is left to uv, which knows what the cluster's machine needs. A label such as
    `+cu130` is dropped: it names a build for this machine, and the index that had it is not known.

    Args:
        left_out: the name of a distribution that is left out with its dependencies.
    """
    pins: dict[str, RequirementLine | None] = {left_out: None}
    followed: set[tuple[str, str]] = set()
    pending: list[tuple[str, Sequence[str]]] = []
    for item in distributions:
        scanned = str(canonicalize_name(item.name))
        pins.setdefault(scanned, _line(scanned, item.version, item.origin, project))
        pending.append((scanned, ()))
    while pending:
        name, extras = pending.pop()
        new = {(name, extra) for extra in ("", *extras)} - followed
        distribution = _installed(name) if new and name != left_out else None
        if distribution is None:
            continue
        followed |= new
        pins.setdefault(name, _line(name, distribution.version, _origin(distribution), project))
        pending += _requirements_of(distribution, [extra for _, extra in new], environment)
    return [line for line in pins.values() if line]


def _installed(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements_of(
    distribution: importlib.metadata.Distribution, extras: Sequence[str], environment: dict[str, str]
) -> list[tuple[str, Sequence[str]]]:
    requirements: list[tuple[str, Sequence[str]]] = []
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # uv reads the same line when it installs, and is the better judge
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras):
            requirements.append((canonicalize_name(requirement.name), sorted(requirement.extras)))
    return requirements


def _origin(distribution: importlib.metadata.Distribution) -> str | None:
    """The address or path that a distribution was installed from, by PEP 610."""
    text = distribution.read_text("direct_url.json")
    if not text:
        return None
    direct = json.loads(text)
    repository = direct.get("vcs_info")
    if not repository:
        return str(direct["url"])
    return f"{repository['vcs']}+{direct['url']}@{repository['commit_id']}"


def _line(name: str, version: str, origin: str | None, project: Path) -> RequirementLine | None:
    pinned = RequirementLine(name, specifier=f"=={_without_label(version)}")
    if not origin:
        return pinned
    path = None if _VERSION_CONTROL.match(origin) else local.path_of(origin)
    if path is None:
        plain = _VERSION_CONTROL.match(origin) or origin.partition("#")[0].endswith(_ARCHIVE)
        return RequirementLine(name, url=origin if plain else f"git+{origin}")
    if not path.exists():
        return pinned  # conda writes the path on the machine that built the package
    return None if local.is_part_of(path, project) else RequirementLine(name, url=local.url_of(path))


def _without_label(version: str) -> str:
    try:
        return Version(version).public
    except InvalidVersion:
        return version
