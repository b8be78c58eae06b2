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

    Without one it is the folder of the file, or of the file's package.

    Args:
        file: the function's file; None for a REPL or a notebook, which belong to the working directory.
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
    """The function's working directory at home: that of this process if it lies in the project, else the project."""
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
    other_entries = [entry for entry in sys.path if os.path.realpath(entry) != folder]
    for name in names:
        spec = PathFinder.find_spec(name, [folder])
        if spec and spec.origin and PathFinder.find_spec(name, other_entries):
            yield f"Python takes {spec.origin} for the package {name!r}: give the file another name"
