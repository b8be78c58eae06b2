"""Which binary packages a cluster can use, and which requirements mean something at home alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from packaging.tags import Tag, cpython_tags
from packaging.utils import parse_wheel_filename

from slurm_ray_flow.core.requirements import Line

_UV_GLIBC = (17, 28, *range(31, 41))
"""The minor versions of glibc for which uv has a name."""
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A cluster's Python, as wheels are chosen for it.

    Attributes:
        python: its full version, "3.11.7".
        machine: "x86_64".
        libc: "glibc 2.36"; anything else is taken for musl.
    """

    python: str
    machine: str
    libc: str

    @classmethod
    def of(cls, python: str, platform: str, libc: str) -> Target:
        """From what the cluster says of its Python; platform is such as "cp311-linux_x86_64"."""
        return cls(python, platform.partition("linux_")[2] or platform.rpartition("_")[2], libc)

    @property
    def version(self) -> str:
        """Major and minor."""
        return ".".join(self.python.split(".")[:2])

    @property
    def uv_platform(self) -> str:
        """What `uv pip --python-platform` calls it."""
        usable = [minor for minor in _UV_GLIBC if minor <= self._glibc]
        if not self._glibc:
            return f"{self.machine}-unknown-linux-musl"
        return f"{self.machine}-manylinux_2_{usable[-1]}" if usable else f"{self.machine}-manylinux2014"

    @property
    def platforms(self) -> list[str]:
        """The platform tags of its wheels, the best first."""
        if not self._glibc:
            return [f"musllinux_1_{minor}_{self.machine}" for minor in (2, 1)]
        found = []
        for minor in range(self._glibc, 4, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _OLD_NAMES:
                found.append(f"{_OLD_NAMES[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

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
        found = re.fullmatch(r"glibc 2\.(\d+)", self.libc)
        return int(found[1]) if found else 0


def is_local(line: str) -> bool:
    """Whether a requirement is a path at home."""
    return Line.parse(line).url.startswith("file:")


def local_links(options: Sequence[str]) -> list[str]:
    """The `--find-links` that are folders at home."""
    values = [option.partition(" ")[2] for option in options if option.startswith("--find-links ")]
    return [value for value in values if "://" not in value or value.startswith("file:")]


def without_wheel(said: str) -> str:
    """The requirement of which pip says that there is no wheel for the target; "" where it says no such thing."""
    found = re.search(r"No matching distribution found for (\S+)", said)
    return found[1] if found else ""
