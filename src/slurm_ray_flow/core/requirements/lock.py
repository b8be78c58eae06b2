"""Read a uv.lock: the exact packages that the project needs on the cluster."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements.local import is_part_of, url_of
from slurm_ray_flow.core.requirements.model import Line, without_credentials
from slurm_ray_flow.core.requirements.pyproject import index_options, read_toml

Package = Mapping[str, Any]
_FOLDERS = ("editable", "virtual", "directory")


def read_lock(path: Path, python: str, environment: dict[str, str], left_out: str) -> tuple[list[Line], list[str]]:
    """The pins of the project's own dependencies, followed to the end, and the index options they need.

    Groups such as `dev` and the project's extras are not wanted. An index is given as an option where the
    project's pyproject.toml names it; any other is the cluster's own default.

    Args:
        left_out: the name of a distribution that is neither wanted nor followed.

    Raises:
        DependencyError: it is damaged, has no project in it, or was not made for this Python.
    """
    graph = _Graph(read_toml(path), path, environment)
    _check_python(graph.data, python, path)
    packages = list(graph.wanted(left_out))
    lines = [line for package in packages if (line := _line(package, path.parent))]
    return lines, _options(packages, path.parent)


def _check_python(data: Package, python: str, path: Path) -> None:
    wanted = data.get("requires-python", "")
    # A patch level far up: `>=3.11.4` is no word against 3.11, and `<3.14` is one against 3.14.
    if not any(SpecifierSet(wanted).contains(f"{python}.{patch}") for patch in (0, 99)):
        raise DependencyError(
            f"uv.lock is for Python {wanted}, the cluster's is {python}",
            where=str(path),
            advice="widen requires-python and run `uv lock`",
        )


@dataclasses.dataclass(frozen=True)
class _Graph:
    data: Package
    path: Path
    environment: dict[str, str]

    def wanted(self, left_out: str) -> Iterator[Package]:
        """Each package once, from the roots on."""
        pending = [(root, "") for root in self.roots()]
        seen: set[tuple[str, str, str]] = set()
        given: set[tuple[str, str]] = set()
        while pending:
            package, extra = pending.pop()
            key = (package["name"], package.get("version", ""))
            if (*key, extra) in seen:
                continue
            seen.add((*key, extra))
            if key not in given:
                given.add(key)
                yield package
            pending += self.followed(package, extra, left_out)

    def followed(self, package: Package, extra: str, left_out: str) -> Iterator[tuple[Package, str]]:
        """What it depends on by itself ("") or by one of its extras."""
        wanted = package.get("optional-dependencies", {}).get(extra, []) if extra else package.get("dependencies", [])
        for dependency in wanted:
            if canonicalize_name(dependency["name"]) != left_out and self.holds(dependency.get("marker")):
                found = self.find(dependency)
                yield from ((found, name) for name in ("", *dependency.get("extra", ())))

    def roots(self) -> list[Package]:
        packages = self.data.get("package", [])
        members = self.data.get("manifest", {}).get("members", [])
        found = [package for package in packages if _folder(package) == "."]
        found = found or [package for package in packages if package["name"] in members]
        if not found:
            raise DependencyError("uv.lock holds no project", where=str(self.path), advice="run `uv lock`")
        return found

    def find(self, dependency: Package) -> Package:
        for package in self.data["package"]:
            same = all(
                package.get(key) == dependency[key] for key in ("name", "version", "source") if key in dependency
            )
            markers = package.get("resolution-markers")
            if same and (not markers or any(map(self.holds, markers))):
                return package  # type: ignore[no-any-return]
        raise DependencyError(
            f"uv.lock lacks {dependency['name']}, which it asks for", where=str(self.path), advice="run `uv lock`"
        )

    def holds(self, marker: str | None) -> bool:
        return not marker or Marker(marker).evaluate({**self.environment, "extra": ""})


def _folder(package: Package) -> str | None:
    source = package.get("source", {})
    return next((source[kind] for kind in _FOLDERS if kind in source), None)


def _line(package: Package, base: Path) -> Line | None:
    """Its pin; None for a folder of the project itself."""
    source, name = package.get("source", {}), canonicalize_name(package["name"])
    local = _folder(package) or source.get("path")
    if local is not None:
        path = Path(os.path.normpath(base.absolute() / local))
        ours = is_part_of(path, base) or "virtual" in source
        return None if ours else Line(name, url=url_of(path))
    if "git" in source:
        return Line(name, url=_git(source["git"]))
    if "url" in source:
        part = f"#subdirectory={source['subdirectory']}" if "subdirectory" in source else ""
        return Line(name, url=source["url"] + part)
    return Line(name, specifier=f"=={package['version']}" if "version" in package else "")


def _git(address: str) -> str:
    """`https://host/x?subdirectory=y&rev=v1#commit`, as pip and uv take it."""
    parts = urlsplit(address)
    folder = parse_qs(parts.query).get("subdirectory", [""])[0]
    plain = f"git+{parts.scheme}://{parts.netloc}{parts.path}@{parts.fragment}"
    return plain + (f"#subdirectory={folder}" if folder else "")


def _options(packages: list[Package], base: Path) -> list[str]:
    named = {
        without_credentials(url).rstrip("/"): option for url, option in index_options(base / "pyproject.toml").items()
    }
    used = {package.get("source", {}).get("registry", "").rstrip("/") for package in packages} - {""}
    options = [option for url, option in named.items() if url in used]
    options += sorted(f"--find-links {(base / url).resolve()}" for url in used if "://" not in url)
    # Every version is pinned here; uv must not stop at the first index that knows a name in another version.
    return [*options, "--index-strategy unsafe-best-match"] if options and len(used) > 1 else options
