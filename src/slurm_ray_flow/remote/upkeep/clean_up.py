"""Away with what nobody has used for long: one operation says what would go, another removes it."""

from __future__ import annotations

import contextlib
import glob
import os
import subprocess
import time
from typing import Any, Callable, Dict, List, Sequence, Tuple

from slurm_ray_flow.remote.shared import tree
from slurm_ray_flow.remote.shared.protocol import OperationError
from slurm_ray_flow.remote.upkeep.stale_files import RootListing, StaleFiles, expired

PRUNE_SECONDS = 300.0

Thing = Dict[str, Any]
"""What goes together: kind, places, base, used; and, where it was measured, bytes and files."""


def find(root: str, seconds: float, known: Dict[str, Any], run: str = "") -> Dict[str, Any]:
    """What goes, with what it frees.

    Args:
        root: the folder of everything of ours.
        seconds: how long a thing stays that nobody uses.
        known: what home knows of runs, by their ids: `ages`, how many seconds ago it saw one used; `launching`, those
            whose launch lives; `kept`, those that somebody asked to keep.
        run: look at this run alone, however young it is.

    Returns:
        `things`; `runs`, the ids of all that are there; `findings`, what is left alone and why.
    """
    findings: List[str] = []
    going, runs = _going(root, seconds, known, run, findings.append)
    things = []
    for left in going:
        try:
            things.append(_thing(root, left))
        except FileNotFoundError:  # somebody else has removed it
            continue
        except (OSError, tree.NotOurs, RecursionError) as problem:
            findings.append("{}: left alone: {}".format(left.places[0], problem))
    return {"things": things, "runs": sorted(runs), "findings": findings}


def remove(root: str, seconds: float, known: Dict[str, Any], places: Sequence[str], run: str = "") -> Dict[str, Any]:
    """Remove what `find` has found, if nobody has come to use it since.

    Args:
        root, seconds, known, run: as for `find`.
        places: the first place of each thing, with its base.

    Returns:
        `stayed`: why something is still there, by its first place.
    """
    going, _ = _going(root, seconds, known, run, lambda _: None)
    there = {_name(left.base, left.places): left for left in going}
    stayed = {}
    for place in places:
        try:
            if place in there:
                _remove(root, there[place])
            elif os.path.lexists(place if place.startswith("/") else os.path.join(root, place)):
                stayed[place] = "it is in use again"
        except (OSError, tree.NotOurs, RecursionError) as problem:
            stayed[place] = str(problem)
    return {"stayed": stayed}


def prune(root: str, uv: str = "") -> int:
    """Have uv remove from the cache under the root what no package needs; gives the bytes that are free by that.

    Args:
        root: the folder of everything of ours.
        uv: the program; empty for the one that was put there.
    """
    cache = os.path.join(root, "cache", "uv")
    programs = [uv] if uv else sorted(glob.glob(os.path.join(glob.escape(root), "tools", "uv", "*", "uv")))
    if not programs or not tree.entries(root, "cache/uv"):
        return 0
    before = _size(root, "cache/uv")
    command = [programs[-1], "cache", "prune", "--quiet", "--no-config", "--cache-dir", cache]
    nothing = subprocess.DEVNULL
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # it is there for the next time
        subprocess.run(command, stdin=nothing, stdout=nothing, stderr=nothing, timeout=PRUNE_SECONDS, check=False)
    return max(before - _size(root, "cache/uv"), 0)


def touch(root: str, places: List[str]) -> None:
    """Note that a launch is about to use these; a folder that a clean-up has just removed is no error here.

    Args:
        root: the folder of everything of ours.
        places: below it, such as "environments/DIGEST".
    """
    for place in places:
        parent, _, name = place.rpartition("/")
        with contextlib.suppress(OSError, tree.NotOurs), tree.folder(root, parent) as descriptor:
            os.utime(name, dir_fd=descriptor, follow_symlinks=False)


def _going(
    root: str, seconds: float, known: Dict[str, Any], run: str, tell: Callable[[str], None]
) -> Tuple[List[StaleFiles], Sequence[str]]:
    with contextlib.suppress(FileNotFoundError), tree.folder(root) as descriptor:
        _check_owner(root, os.fstat(descriptor).st_uid)
    listing = RootListing(root, tell=tell, **known)
    if run:
        return listing.one_run(run), ()
    return expired(listing.all(), time.time(), seconds), sorted(listing.runs)


def _check_owner(root: str, owner: int) -> None:
    if owner != os.geteuid():
        what = "the root folder belongs to another user (number {})".format(owner)
        raise OperationError(what, root, "choose another root for this cluster")


def _thing(root: str, left: StaleFiles) -> Thing:
    found = [tree.measure(left.base or root, place) for place in left.places]
    return {
        "kind": left.kind, "places": list(left.places), "base": left.base, "used": left.used,
        "name": _name(left.base, left.places), "bytes": sum(size for size, _ in found),
        "files": sum(number for _, number in found),
    }  # fmt: skip


def _name(base: str, places: Sequence[str]) -> str:
    return os.path.join(base, places[0])


def _size(root: str, place: str) -> int:
    with contextlib.suppress(OSError, tree.NotOurs, RecursionError):
        return tree.measure(root, place)[0]
    return 0


def _remove(root: str, left: StaleFiles) -> None:
    """Out of everybody's sight first, and then away: nobody is to meet half of it."""
    base = left.base or root
    for place in left.places:
        with contextlib.suppress(FileNotFoundError):
            tree.measure(base, place)  # all of it must be ours before any of it goes
    aside = []
    for place in left.places:
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it at this moment
            aside.append((tree.set_aside(base, place), place))
    if _used_since(base, left, aside):
        for away, place in aside:
            tree.put_back(base, away, place)
        raise tree.NotOurs("it is in use again")
    for away, _ in aside:
        tree.remove(base, away)


def _used_since(base: str, left: StaleFiles, aside: Sequence[Tuple[str, str]]) -> bool:
    """A launch may have come for it in the very moment of its renaming."""
    if left.alive is None:
        return False
    for away, _ in aside:
        parent, _, name = away.rpartition("/")
        with contextlib.suppress(FileNotFoundError), tree.folder(base, parent) as descriptor:
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime > left.used:
                return True
    return False


OPERATIONS: Dict[str, Any] = {
    "clean_up.find": find,
    "clean_up.remove": remove,
    "clean_up.prune": prune,
    "clean_up.touch": touch,
}
