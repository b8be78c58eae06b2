"""Files of the user's that have the name of a package: Python takes them for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder

NEEDED = ("cloudpickle", "dill", "ray")
"""What a launch needs beyond what is imported by then."""


def shadows(names: Iterable[str]) -> Iterator[str]:
    """Says of each name which file of the script's folder is taken for the installed package.

    Args:
        names: of packages and modules.
    """
    folder = os.path.realpath("".join(sys.path[:1]))
    others = [place for place in sys.path if os.path.realpath(place) != folder]
    for name in names:
        found = PathFinder.find_spec(name, [folder])
        if found and found.origin and PathFinder.find_spec(name, others):
            yield f"Python takes {found.origin} for the package {name!r}: give the file another name"
