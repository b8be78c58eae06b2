"""The files of a root in groups, with the time of their last use and whether a run still needs them."""

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
_TOOLS = re.compile(r"[0-9a-f]{16}")
_ASIDE = re.compile(
    r"\.({0}\w+|{1}[\w-]+\.[0-9a-f]+{2})".format(*map(re.escape, (installation.PREFIX, FOLDER_PREFIX, tree.EXPIRED)))
)
"""What a killed head, or an interrupted clean-up, had renamed to remove it (`packing.remove`, `tree.set_aside`)."""


@dataclass(frozen=True)
class StaleFiles:
    """Files and folders that are kept or removed together.

    Attributes:
        kind: "run", "snapshot", "environment", ...
        places: their paths below `base`, with "/".
        used: when somebody used them last, in seconds since 1970.
        alive: whether something that runs now needs them; None where nothing ever will again.
        base: the folder they lie in, where it is not the root.
    """

    kind: str
    places: Tuple[str, ...]
    used: float
    alive: Optional[bool] = False
    base: str = ""


def expired(left: Sequence[StaleFiles], now: float, seconds: float) -> List[StaleFiles]:
    """The groups to remove: unused for so long, not needed by a run, and older than a day."""
    kept = max(seconds, DAY)
    return [one for one in left if one.alive is None or (not one.alive and now - one.used > kept)]


class RootListing:
    """The listing of a root.

    Args:
        root: the folder of everything of ours.
        ages: how many seconds ago home saw a run used, by the run's id.
        launching: ids of runs whose launch lives.
        kept: ids of runs that somebody asked to keep; what they ran in may go.
        tell: gets a sentence for each place that is left alone because it is not ours.
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
        self._seen: Dict[str, Dict[str, os.stat_result]] = {}
        self.runs: Set[str] = set()

    def all(self) -> List[StaleFiles]:
        """All groups; the runs first, since they name what they need of the rest."""
        runs = list(self._runs())
        self._needed += in_use({self._root, os.path.realpath(self._root)})
        others = (
            self._snapshots, self._environments, self._wheelhouses, self._tools, self._caches, self._store,
            self._warm, self._remains, node_folders,
        )  # fmt: skip
        return runs + [left for look in others for left in look()]

    def one_run(self, run_id: str) -> List[StaleFiles]:
        """The run of this id, which is to go although it is young, or kept.

        Raises:
            OperationError: something of it lives.
        """
        matching = [left for left in self._runs() if left.places[0].partition("/")[2].partition(".")[0] == run_id]
        for left in matching:
            names = [place.partition("/")[2] for place in left.places]
            if any(head_alive(self._events(name), self._now - left.used) for name in names):
                raise OperationError("run {} still lives".format(run_id), left.places[0], "end it with `srf cancel`")
        return [replace(left, alive=None) for left in matching]

    # ---- runs

    def _runs(self) -> Iterator[StaleFiles]:
        """A run is the folders of its tries, `ID` and `ID.2`, and at home its record, `ID.json`."""
        groups: Dict[str, List[str]] = {}
        for name in self._entries("runs"):
            if not name.startswith("."):
                groups.setdefault(name.partition(".")[0], []).append(name)
        self.runs = set(groups)
        for run_id, names in sorted(groups.items()):
            used = max(self._used_run(name) for name in names)
            used = max(used, self._now - self._ages.get(run_id, self._now))
            alive = [self._run_alive(name, used) for name in names]  # each says what it needs, too
            kept = run_id in self._kept or any(self._spec(name).get("keep") for name in names)
            yield StaleFiles("run", tuple("runs/" + name for name in names), used, any(alive) or kept)

    def _used_run(self, name: str) -> float:
        own = self._entries("runs").get(name)
        if own is None:
            return 0.0
        inside = self._entries("runs/" + name) if tree.is_folder(own) else {}
        times = [status.st_mtime for status in inside.values()]
        return max([own.st_mtime, *times])

    def _run_alive(self, name: str, used: float) -> bool:
        events = self._events(name)
        lives = name.partition(".")[0] in self._launching or head_alive(events, self._now - used)
        if lives or (not events and self._now - used < DAY):  # a launch is under way
            script = tree.read(self._root, "runs/" + name, "run.sh").decode("utf-8", "replace")
            self._needed += [*strings_in(self._spec(name)), script]
        return lives

    def _events(self, name: str) -> List[Dict[str, Any]]:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return parse_events(tree.read(self._root, "runs/" + name, "events.jsonl"))[0]
        return []

    def _spec(self, name: str) -> Dict[str, Any]:
        with contextlib.suppress(ValueError):
            found = json.loads(tree.read(self._root, "runs/" + name, "spec.json") or b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    # ---- what runs need

    def _snapshots(self) -> Iterator[StaleFiles]:
        for project in self._folders("snapshots"):
            folder = "snapshots/" + project
            entries = self._entries(folder)
            for digest in sorted({name[:-5] if name.endswith(".list") else name for name in entries}):
                if not digest.startswith("."):
                    names = [name for name in (digest, digest + ".list") if name in entries]
                    used = entries[names[-1]].st_mtime  # each launch touches the listing of the one it uses
                    places = tuple("{}/{}".format(folder, name) for name in names)
                    yield StaleFiles("snapshot", places, used, self._is_needed(folder + "/" + digest))

    def _environments(self) -> Iterator[StaleFiles]:
        """A folder, or one file where it is packed, and what lies beside it under the same name."""
        entries = self._entries("environments")
        groups: Dict[str, List[str]] = {}
        for name in entries:
            if not name.startswith("."):
                groups.setdefault(name.partition(".")[0], []).append(name)
        for digest, names in sorted(groups.items()):
            used = [entries[name].st_mtime for name in names]
            used += [inner["whole.json"].st_mtime for inner in map(self._inside, names) if "whole.json" in inner]
            places = tuple("environments/" + name for name in sorted(names))
            yield StaleFiles("environment", places, max(used), self._is_needed("environments/" + digest))

    def _inside(self, name: str) -> Dict[str, os.stat_result]:
        status = self._entries("environments").get(name)
        return self._entries("environments/" + name) if status and tree.is_folder(status) else {}

    def _wheelhouses(self) -> Iterator[StaleFiles]:
        for name, status in sorted(self._entries("wheelhouses").items()):
            if not name.startswith("."):
                place = "wheelhouses/" + name
                yield StaleFiles("wheelhouse", (place,), status.st_mtime, self._is_needed(place))

    def _tools(self) -> Iterator[StaleFiles]:
        """Our programs by their digest, and uv by its version, of which the newest stays."""
        running = os.path.abspath(__file__)
        for name, status in sorted(self._entries("tools").items()):
            path = "tools/" + name
            if _TOOLS.fullmatch(name):
                yield StaleFiles("tool", (path,), status.st_mtime, self._is_needed(path) or "/" + path + "/" in running)
        if "uv" in self._folders("tools"):
            versions = {name: status for name, status in self._entries("tools/uv").items() if not name.startswith(".")}
            for name in sorted(versions, key=lambda name: versions[name].st_mtime)[:-1]:
                yield StaleFiles(
                    "tool", ("tools/uv/" + name,), versions[name].st_mtime, self._is_needed("tools/uv/" + name)
                )

    # ---- caches, and what is of use no more

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
                if self._now - status.st_mtime > HOUR and not self._run_alive(name, self._used_run(name)):
                    yield StaleFiles("warm entry", ("warm/{}/{}".format(folder, name),), status.st_mtime, None)

    def _remains(self) -> Iterator[StaleFiles]:
        """The files that an interrupted clean-up or transfer left."""
        places = ["runs", "environments", "wheelhouses", "tools", "tools/uv"]
        places += ["snapshots/" + project for project in self._folders("snapshots")]
        for path in places:
            for name, status in self._entries(path).items():
                gone = name.endswith(tree.EXPIRED)
                if name.startswith(".") and (gone or (path.startswith("snapshots/") and tree.is_folder(status))):
                    alive = None if gone else False
                    yield StaleFiles("remains", ("{}/{}".format(path, name),), status.st_mtime, alive)

    def _is_needed(self, place: str) -> bool:
        return any("/" + place in text for text in self._needed)

    def _folders(self, place: str) -> List[str]:
        found = self._entries(place)
        return sorted(name for name, status in found.items() if tree.is_folder(status) and not name.startswith("."))

    def _entries(self, folder: str) -> Dict[str, os.stat_result]:
        if folder not in self._seen:
            self._seen[folder] = self._look(folder)
        return self._seen[folder]

    def _look(self, folder: str) -> Dict[str, os.stat_result]:
        try:
            return tree.entries(self._root, folder)
        except tree.NotOurs as problem:
            self._tell("{}: left alone: {}".format(folder, problem))
        except OSError as error:
            self._tell("{}: can't be read: {}".format(folder, error.strerror))
        return {}


def node_folders() -> Iterator[StaleFiles]:
    """The folders of heads and builders among the machine's temporary files."""
    for base in temporary_folders():
        for name, status in sorted(_ours(base).items()):
            if _ASIDE.fullmatch(name):
                yield StaleFiles("remains", (name,), status.st_mtime, None, base)
            elif owner := tree.read(base, name, OWNER):
                kind = "unpacked environment" if name.startswith(installation.PREFIX) else "Ray folder"
                alive = _owner_alive(owner, time.time() - status.st_mtime)
                yield StaleFiles(kind, (name,), 0.0, True if alive else None, base)


def _ours(base: str) -> Dict[str, os.stat_result]:
    """This user's folders with the names that heads give, or that folders get before their removal."""
    folders = {}
    with contextlib.suppress(OSError):
        for name, status in tree.entries(base, "").items():
            named = name.startswith(FOLDER_PREFIX) or _ASIDE.fullmatch(name)
            if named and tree.is_folder(status) and status.st_uid == os.geteuid():
                folders[name] = status
    return folders


def temporary_folders() -> List[str]:
    """The folders of temporary files in which heads make theirs."""
    return sorted(
        {os.path.realpath(path) for path in ("/tmp", tempfile.gettempdir(), os.environ.get("TMPDIR", "/tmp"))}
    )


def _owner_alive(owner: bytes, silent: float) -> bool:
    try:
        return alive_or_unknown(json.loads(owner), silent)
    except (ValueError, TypeError, KeyError, AttributeError):
        return True  # it is just being written
