"""The files of a root in groups, each with the time of its last use and whether a run still needs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.head.ray_cluster import FOLDER_PREFIX
from slurm_ray_flow.remote.shared import tree
from slurm_ray_flow.remote.shared.leftovers import OWNER
from slurm_ray_flow.remote.shared.liveness import alive_or_unknown, head_alive, in_use, strings_in
from slurm_ray_flow.remote.shared.protocol import OperationError, parse_events

DAY = 86400.0
HOUR = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{16}")
_HIDDEN = re.compile(
    r"\.({0}\w+|{1}[\w-]+\.[0-9a-f]+{2})".format(*map(re.escape, (installation.PREFIX, FOLDER_PREFIX, tree.EXPIRED)))
)
"""Folders whose removal by a head or a clean-up was interrupted (`installation.remove`, `tree.set_aside`)."""


@dataclass(frozen=True)
class StaleFiles:
    """Files and folders that are kept or removed together.

    Attributes:
        kind: "run", "snapshot", "environment", ...
        paths: their paths below `base`, with "/".
        used: the time of their last use, in seconds since 1970.
        alive: whether a process or a run needs them now; None if none can ever need them again.
        base: the folder around them, if it is not the root.
    """

    kind: str
    paths: Tuple[str, ...]
    used: float
    alive: Optional[bool] = False
    base: str = ""


def expired(groups: Sequence[StaleFiles], now: float, seconds: float) -> List[StaleFiles]:
    """The groups to remove: unused for `seconds` and at least a day, and not needed by a run."""
    age = max(seconds, DAY)
    return [group for group in groups if group.alive is None or (not group.alive and now - group.used > age)]


class RootListing:
    """The listing of a root.

    Args:
        root: the root folder.
        ages: the seconds since home last used a run, by the run's id.
        launching: ids of runs whose launch lives.
        kept: ids of runs that users asked to keep; their snapshots and environments are not kept.
        tell: gets a sentence for each folder that is left alone because it is not this user's.
    """

    def __init__(
        self,
        root: str,
        ages: Dict[str, float],
        launching: Sequence[str],
        kept: Sequence[str],
        tell: Callable[[str], None],
    ) -> None:
        self._root, self._ages, self._tell = root, ages, tell
        self._launching, self._kept = set(launching), set(kept)
        self._now = time.time()
        self._needed: List[str] = []
        self._scanned: Dict[str, Dict[str, os.stat_result]] = {}
        self.runs: Set[str] = set()

    def all(self) -> List[StaleFiles]:
        """All groups; the runs come first, since their specs name the other files that they need."""
        runs = list(self._runs())
        self._needed += in_use({self._root, os.path.realpath(self._root)})
        others = (
            self._snapshots, self._environments, self._wheelhouses, self._tools, self._caches, self._store,
            self._warm, self._interrupted_removals, node_folders,
        )  # fmt: skip
        return runs + [group for list_kind in others for group in list_kind()]

    def one_run(self, run_id: str) -> List[StaleFiles]:
        """The run of this id, which is to be removed even if it is young, or kept.

        Raises:
            OperationError: its head lives.
        """
        matching = [group for group in self._runs() if group.paths[0].partition("/")[2].partition(".")[0] == run_id]
        for group in matching:
            names = [path.partition("/")[2] for path in group.paths]
            if any(head_alive(self._events(name), self._now - group.used) for name in names):
                raise OperationError("run {} still lives".format(run_id), group.paths[0], "end it with `srf cancel`")
        return [replace(group, alive=None) for group in matching]

    # ---- runs

    def _runs(self) -> Iterator[StaleFiles]:
        """Runs, each with the folders of its tries, `ID` and `ID.2`, and at home its record, `ID.json`."""
        groups: Dict[str, List[str]] = {}
        for name in self._entries("runs"):
            if not name.startswith("."):
                groups.setdefault(name.partition(".")[0], []).append(name)
        self.runs = set(groups)
        for run_id, names in sorted(groups.items()):
            used = max(self._last_use_of(name) for name in names)
            used = max(used, self._now - self._ages.get(run_id, self._now))
            alive = [self._run_alive(name, used) for name in names]  # adds to `_needed`
            keep = run_id in self._kept or any(self._spec(name).get("keep") for name in names)
            yield StaleFiles("run", tuple("runs/" + name for name in names), used, any(alive) or keep)

    def _last_use_of(self, name: str) -> float:
        folder_status = self._entries("runs").get(name)
        if folder_status is None:
            return 0.0
        content = self._entries("runs/" + name) if tree.is_folder(folder_status) else {}
        times = [status.st_mtime for status in content.values()]
        return max([folder_status.st_mtime, *times])

    def _run_alive(self, name: str, used: float) -> bool:
        events = self._events(name)
        alive = name.partition(".")[0] in self._launching or head_alive(events, self._now - used)
        if alive or (not events and self._now - used < DAY):  # a launch is under way
            script = tree.read(self._root, "runs/" + name, "run.sh").decode("utf-8", "replace")
            self._needed += [*strings_in(self._spec(name)), script]
        return alive

    def _events(self, name: str) -> List[Dict[str, Any]]:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return parse_events(tree.read(self._root, "runs/" + name, "events.jsonl"))[0]
        return []

    def _spec(self, name: str) -> Dict[str, Any]:
        with contextlib.suppress(ValueError):
            spec = json.loads(tree.read(self._root, "runs/" + name, "spec.json") or b"{}")
            return spec if isinstance(spec, dict) else {}
        return {}

    # ---- files that runs need

    def _snapshots(self) -> Iterator[StaleFiles]:
        for project in self._folders("snapshots"):
            folder = "snapshots/" + project
            entries = self._entries(folder)
            for digest in sorted({name[:-5] if name.endswith(".list") else name for name in entries}):
                if not digest.startswith("."):
                    names = [name for name in (digest, digest + ".list") if name in entries]
                    used = entries[names[-1]].st_mtime  # a launch touches the listing of its snapshot
                    paths = tuple("{}/{}".format(folder, name) for name in names)
                    yield StaleFiles("snapshot", paths, used, self._is_needed(folder + "/" + digest))

    def _environments(self) -> Iterator[StaleFiles]:
        """Environments: a folder, or one file if it is packed, and other files of the same digest."""
        entries = self._entries("environments")
        groups: Dict[str, List[str]] = {}
        for name in entries:
            if not name.startswith("."):
                groups.setdefault(name.partition(".")[0], []).append(name)
        for digest, names in sorted(groups.items()):
            used = [entries[name].st_mtime for name in names]
            used += [inner["whole.json"].st_mtime for inner in map(self._content_of, names) if "whole.json" in inner]
            paths = tuple("environments/" + name for name in sorted(names))
            yield StaleFiles("environment", paths, max(used), self._is_needed("environments/" + digest))

    def _content_of(self, name: str) -> Dict[str, os.stat_result]:
        status = self._entries("environments").get(name)
        return self._entries("environments/" + name) if status and tree.is_folder(status) else {}

    def _wheelhouses(self) -> Iterator[StaleFiles]:
        for name, status in sorted(self._entries("wheelhouses").items()):
            if not name.startswith("."):
                path = "wheelhouses/" + name
                yield StaleFiles("wheelhouse", (path,), status.st_mtime, self._is_needed(path))

    def _tools(self) -> Iterator[StaleFiles]:
        """The package's programs by digest, and uv by version, without the newest one."""
        running = os.path.abspath(__file__)
        for name, status in sorted(self._entries("tools").items()):
            path = "tools/" + name
            if _DIGEST.fullmatch(name):
                yield StaleFiles("tool", (path,), status.st_mtime, self._is_needed(path) or "/" + path + "/" in running)
        if "uv" in self._folders("tools"):
            versions = {name: status for name, status in self._entries("tools/uv").items() if not name.startswith(".")}
            for name in sorted(versions, key=lambda name: versions[name].st_mtime)[:-1]:
                yield StaleFiles(
                    "tool", ("tools/uv/" + name,), versions[name].st_mtime, self._is_needed("tools/uv/" + name)
                )

    # ---- caches, and files that no run can use

    def _caches(self) -> Iterator[StaleFiles]:
        for folder in self._folders("cache"):
            entries = self._entries("cache/" + folder)
            if folder == "uv":
                times = [status.st_mtime for status in entries.values()]
                times += [status.st_mtime for status in self._entries("environments").values()]
                yield StaleFiles("uv cache", ("cache/uv",), max(times, default=0.0), self._is_needed("cache/uv"))
                continue
            for name, status in entries.items():
                yield StaleFiles("remembered value", ("cache/{}/{}".format(folder, name),), status.st_mtime)

    def _store(self) -> Iterator[StaleFiles]:
        for folder in self._folders("store"):
            for name, status in self._entries("store/" + folder).items():
                yield StaleFiles("argument", ("store/{}/{}".format(folder, name),), status.st_mtime)

    def _warm(self) -> Iterator[StaleFiles]:
        for folder in self._folders("warm"):
            for name, status in self._entries("warm/" + folder).items():
                if self._now - status.st_mtime > HOUR and not self._run_alive(name, self._last_use_of(name)):
                    yield StaleFiles("warm entry", ("warm/{}/{}".format(folder, name),), status.st_mtime, None)

    def _interrupted_removals(self) -> Iterator[StaleFiles]:
        """Files of interrupted clean-ups and transfers."""
        paths = ["runs", "environments", "wheelhouses", "tools", "tools/uv"]
        paths += ["snapshots/" + project for project in self._folders("snapshots")]
        for folder in paths:
            for name, status in self._entries(folder).items():
                hidden = name.endswith(tree.EXPIRED)
                if name.startswith(".") and (hidden or (folder.startswith("snapshots/") and tree.is_folder(status))):
                    alive = None if hidden else False
                    yield StaleFiles("remains", ("{}/{}".format(folder, name),), status.st_mtime, alive)

    def _is_needed(self, path: str) -> bool:
        return any("/" + path in text for text in self._needed)

    def _folders(self, folder: str) -> List[str]:
        entries = self._entries(folder)
        return sorted(name for name, status in entries.items() if tree.is_folder(status) and not name.startswith("."))

    def _entries(self, folder: str) -> Dict[str, os.stat_result]:
        if folder not in self._scanned:
            self._scanned[folder] = self._scan(folder)
        return self._scanned[folder]

    def _scan(self, folder: str) -> Dict[str, os.stat_result]:
        try:
            return tree.entries(self._root, folder)
        except tree.NotOurs as problem:
            self._tell("{}: left alone: {}".format(folder, problem))
        except OSError as error:
            self._tell("{}: can't be read: {}".format(folder, error.strerror))
        return {}


def node_folders() -> Iterator[StaleFiles]:
    """The temporary folders of heads and builders on this machine."""
    for base in temporary_folders():
        for name, status in sorted(_own_folders(base).items()):
            if _HIDDEN.fullmatch(name):
                yield StaleFiles("remains", (name,), status.st_mtime, None, base)
            elif owner := tree.read(base, name, OWNER):
                kind = "unpacked environment" if name.startswith(installation.PREFIX) else "Ray folder"
                alive = _owner_alive(owner, time.time() - status.st_mtime)
                yield StaleFiles(kind, (name,), 0.0, True if alive else None, base)


def _own_folders(base: str) -> Dict[str, os.stat_result]:
    """This user's folders with names of heads' folders, or of folders under removal."""
    folders = {}
    with contextlib.suppress(OSError):
        for name, status in tree.entries(base, "").items():
            is_own_name = name.startswith(FOLDER_PREFIX) or _HIDDEN.fullmatch(name)
            if is_own_name and tree.is_folder(status) and status.st_uid == os.geteuid():
                folders[name] = status
    return folders


def temporary_folders() -> List[str]:
    """The folders in which heads make their temporary folders."""
    return sorted(
        {os.path.realpath(path) for path in ("/tmp", tempfile.gettempdir(), os.environ.get("TMPDIR", "/tmp"))}
    )


def _owner_alive(owner: bytes, silence: float) -> bool:
    try:
        return alive_or_unknown(json.loads(owner), silence)
    except (ValueError, TypeError, KeyError, AttributeError):
        return True  # it is being written
