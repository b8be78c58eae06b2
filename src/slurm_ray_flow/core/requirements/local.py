"""Packages that are paths on this machine: their relation to the project, and the digest of their content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from slurm_ray_flow.core.errors import DependencyError

SKIPPED = {".git", ".hg", ".venv", "venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"}
"""Folders that do not count for the content of a package."""
_BUILT = re.compile(r"bdist\..+|(lib|temp)(\..+)?")
"""The names in a folder `build` of setuptools."""


def path_of(url: str) -> Path | None:
    """The path that a `file:` address or a plain path means; None for any other address."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if "://" in url else Path(url)


def url_of(path: Path) -> str:
    """The `file:` address of a path."""
    return path.absolute().as_uri()


def is_part_of(path: Path, project: Path) -> bool:
    """Whether this is a folder of the project's own sources, which travel as files.

    An archive inside the project is not: its code can't be imported from the files.
    """
    return path.is_dir() and path.resolve().is_relative_to(project.resolve())


def resolve(path: str, base: Path, project: Path, where: str) -> Path:
    """The absolute path of a path in a file: relative to the file's folder, else to the project, as for pip.

    Raises:
        DependencyError: neither exists.
    """
    for start in (base, project):
        if _exists(start / path):
            return Path(os.path.normpath((start / path).absolute()))
    advice = "write its path as seen from this file"
    if Path(path).is_absolute():
        advice += (
            "; conda names the folder where it built a package: write name==version, as `pip list --format=freeze` does"
        )
    raise DependencyError(f"the local package {path} is not there", where=where, advice=advice)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def content_digest(path: Path, travelling: Collection[Path] = ()) -> str:
    """SHA-256 over a file, or over the names and bytes of a folder's files.

    Args:
        path: the file or folder.
        travelling: the resolved paths of the user's modules that travel as files. The run imports these modules, and
            not the installed ones of the same package, which therefore do not count.

    Raises:
        DependencyError: a file can't be read.
    """
    total = hashlib.sha256()
    try:
        for file in _files(path.resolve()):
            if file.suffix == ".py" and any(imported in travelling for imported in _imported_with(file)):
                continue
            name = file.relative_to(path.resolve()).as_posix().encode()
            total.update(len(name).to_bytes(4, "big") + name + hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise DependencyError(f"a local package can't be read: {error}", where=str(path)) from error
    return total.hexdigest()


def _imported_with(file: Path) -> list[Path]:
    """The files that an import of a module runs: its own, and those of the packages around it."""
    return [file, *(folder / "__init__.py" for folder in file.parents)]


def ignored_names(folder: str, names: Iterable[str]) -> set[str]:
    """The names in a folder that do not count for the content of a package: caches, and results of a build."""
    skipped = {name for name in names if name in SKIPPED or name.endswith(".egg-info")}
    build = Path(folder, "build")
    if build.is_dir() and any(_BUILT.fullmatch(entry.name) for entry in build.iterdir()):
        skipped.add("build")
    return skipped


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    paths: list[Path] = []
    for folder, names, files in os.walk(path):
        names[:] = sorted({*names} - ignored_names(folder, names))
        paths += [Path(folder) / file for file in sorted(files) if (Path(folder) / file).is_file()]
    return paths
