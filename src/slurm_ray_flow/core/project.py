"""The folder of the user's project."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

MARKS = ("pyproject.toml", "uv.lock", "requirements.txt", "setup.py", "setup.cfg", "environment.yml", ".git")
"""Files and folders that mark the top of a project."""


def project_of(file: Path | None, working_directory: Path) -> Path:
    """The project's folder: the nearest one above the function's file that has one of `MARKS`.

    Where there is none it is the folder of the file, or of the package that the file belongs to.

    Args:
        file: where the function stands; None for one from a REPL or a notebook, which belongs to the working directory.
    """
    start = working_directory if file is None else file.parent
    start = start.resolve()
    for folder in (start, *start.parents):
        if folder in {Path.home(), Path(folder.anchor)}:
            break
        if any((folder / mark).exists() for mark in MARKS):
            return folder
    while (start / "__init__.py").exists():
        start = start.parent
    return start


def folder_at_home(project: Path, working_directory: Path) -> Path:
    """The folder at home of the function's working directory: this process's own if in the project, else that."""
    here, project = working_directory.resolve(), project.resolve()
    return here if here.is_relative_to(project) else project


NEEDED = ("cloudpickle", "dill", "ray")
"""Packages that a launch imports late."""


def shadows(names: Iterable[str]) -> Iterator[str]:
    """A warning for each file in the script's folder that hides an installed package.

    Args:
        names: of packages and modules.
    """
    folder = os.path.realpath("".join(sys.path[:1]))
    others = [place for place in sys.path if os.path.realpath(place) != folder]
    for name in names:
        found = PathFinder.find_spec(name, [folder])
        if found and found.origin and PathFinder.find_spec(name, others):
            yield f"Python takes {found.origin} for the package {name!r}: give the file another name"
