"""The programs that run on a cluster, a folder for each process; `shared` has what several of them use."""

import os


def path_of(name: str) -> str:
    """The path of a program of this package, given its name in it: "head/worker.py"."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), *name.split("/"))
