"""The clean-up of files that no run has used for long: one operation lists them, another removes them."""

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

StaleItem = Dict[str, Any]
"""Files that are removed together: kind, name, places, base, used, bytes and files."""


def find(root: str, seconds: float, known: Dict[str, Any], run: str = "") -> Dict[str, Any]:
    """List the files to remove, with their sizes.

    Args:
        root: the root folder.
        seconds: for how long unused files are kept.
        known: home's facts about runs, by their ids: `ages`, the seconds since their last use; `launching`, the runs
            whose launch lives; `kept`, the runs that users asked to keep.
        run: list only this run, however young it is.

    Returns:
        `things`; `runs`, the ids of all runs in the root; `findings`, files that are left alone and why.
    """
    findings: List[str] = []
    groups, runs = _groups_to_remove(root, seconds, known, run, findings.append)
    items = []
    for group in groups:
        try:
            items.append(_item(root, group))
        except FileNotFoundError:  # another process has removed it
            continue
        except (OSError, tree.NotOurs, RecursionError) as problem:
            findings.append("{}: left alone: {}".format(group.paths[0], problem))
    return {"things": items, "runs": sorted(runs), "findings": findings}


def remove(root: str, seconds: float, known: Dict[str, Any], places: Sequence[str], run: str = "") -> Dict[str, Any]:
    """Remove files that `find` has listed, unless they have been used since.

    Args:
        root, seconds, known, run: as for `find`.
        places: the name of each item.

    Returns:
        `stayed`: for each item that remains, the reason by its name.
    """
    groups, _ = _groups_to_remove(root, seconds, known, run, lambda _: None)
    by_name = {_name(group.base, group.paths): group for group in groups}
    stayed = {}
    for path in places:
        try:
            if path in by_name:
                _remove(root, by_name[path])
            elif os.path.lexists(path if path.startswith("/") else os.path.join(root, path)):
                stayed[path] = "it is in use again"
        except (OSError, tree.NotOurs, RecursionError) as problem:
            stayed[path] = str(problem)
    return {"stayed": stayed}


def prune(root: str, uv: str = "") -> int:
    """Have uv remove entries of the root's cache that no package needs; returns the bytes that this frees.

    Args:
        root: the root folder.
        uv: the program; empty for the root's own.
    """
    cache = os.path.join(root, "cache", "uv")
    programs = [uv] if uv else sorted(glob.glob(os.path.join(glob.escape(root), "tools", "uv", "*", "uv")))
    if not programs or not tree.entries(root, "cache/uv"):
        return 0
    before = _size(root, "cache/uv")
    command = [programs[-1], "cache", "prune", "--quiet", "--no-config", "--cache-dir", cache]
    devnull = subprocess.DEVNULL
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # the next clean-up tries again
        subprocess.run(command, stdin=devnull, stdout=devnull, stderr=devnull, timeout=PRUNE_SECONDS, check=False)
    return max(before - _size(root, "cache/uv"), 0)


def touch(root: str, places: List[str]) -> None:
    """Mark files as used by a launch; one that a clean-up has just removed is no error here.

    Args:
        root: the root folder.
        places: the files below it, such as "environments/DIGEST".
    """
    for path in places:
        parent, _, name = path.rpartition("/")
        with contextlib.suppress(OSError, tree.NotOurs), tree.folder(root, parent) as descriptor:
            os.utime(name, dir_fd=descriptor, follow_symlinks=False)


def _groups_to_remove(
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


def _item(root: str, group: StaleFiles) -> StaleItem:
    sizes = [tree.measure(group.base or root, path) for path in group.paths]
    return {
        "kind": group.kind, "places": list(group.paths), "base": group.base, "used": group.used,
        "name": _name(group.base, group.paths), "bytes": sum(size for size, _ in sizes),
        "files": sum(count for _, count in sizes),
    }  # fmt: skip


def _name(base: str, paths: Sequence[str]) -> str:
    return os.path.join(base, paths[0])


def _size(root: str, path: str) -> int:
    with contextlib.suppress(OSError, tree.NotOurs, RecursionError):
        return tree.measure(root, path)[0]
    return 0


def _remove(root: str, group: StaleFiles) -> None:
    """Rename the files to hidden names, then remove them, so that no process finds an incomplete folder."""
    base = group.base or root
    for path in group.paths:
        with contextlib.suppress(FileNotFoundError):
            tree.measure(base, path)  # all files must be this user's before any is removed
    renamed = []
    for path in group.paths:
        with contextlib.suppress(FileNotFoundError):  # another process removes it at this moment
            renamed.append((tree.set_aside(base, path), path))
    if _used_since(base, group, renamed):
        for hidden, path in renamed:
            tree.put_back(base, hidden, path)
        raise tree.NotOurs("it is in use again")
    for hidden, _ in renamed:
        tree.remove(base, hidden)


def _used_since(base: str, group: StaleFiles, renamed: Sequence[Tuple[str, str]]) -> bool:
    """Whether a launch has used the files since they were listed: it may come at the moment of the rename."""
    if group.alive is None:
        return False
    for hidden, _ in renamed:
        parent, _, name = hidden.rpartition("/")
        with contextlib.suppress(FileNotFoundError), tree.folder(base, parent) as descriptor:
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime > group.used:
                return True
    return False


OPERATIONS: Dict[str, Any] = {
    "clean_up.find": find,
    "clean_up.remove": remove,
    "clean_up.prune": prune,
    "clean_up.touch": touch,
}
