"""Once a day: away with what nobody has used for 30 days, and with the Ray folders of heads that were killed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from slurm_ray_flow.blocks.processes import alive_as_noted
from slurm_ray_flow.blocks.server.sweep import head_state, launch_alive
from slurm_ray_flow.core.expiry import Left, expired
from slurm_ray_flow.core.run import RunPaths, RunRecord
from slurm_ray_flow.remote.ray_cluster import FOLDER_PREFIX, OWNER


def clean_up(root: Path, now: float) -> Iterator[str]:
    """Removes it, and says in a line what it was.

    Args:
        root: the folder of everything of ours.
        now: seconds since 1970.
    """
    runs = list(_runs(root))
    needed = [_text(path / "spec.json") for run in runs if run.alive for path in run.paths]
    for left in expired([*runs, *_snapshots(root, needed), *_files(root), *_ray_folders()], now):
        for path in left.paths:
            _remove(path)
        yield f"removed {left.paths[0]}"


def _runs(root: Path) -> Iterator[Left]:
    """A run is its record and the folders of its tries: `ID.json`, `ID`, `ID.2`."""
    runs: dict[str, list[Path]] = {}
    for path in root.glob("runs/[!.]*"):
        runs.setdefault(_run_id(path.name), []).append(path)
    records = {path: record for path in root.glob("runs/*.json") if (record := _record(path))}
    showing: dict[str, list[Path]] = {}  # a run that was given another one's remembered value shows that one's log
    for path, record in records.items():
        showing.setdefault(_run_id(record.attempt), []).append(path)
    for run_id, paths in runs.items():
        parts = [inner for path in paths for inner in (path, *path.glob("*"))]
        used = max(map(_changed, [*parts, *showing.get(run_id, ())]))
        yield Left(tuple(paths), used, any(_run_alive(root, path, records.get(path)) for path in paths))


def _run_id(name: str) -> str:
    return name.partition(".")[0]


def _record(path: Path) -> RunRecord | None:
    try:
        return RunRecord.from_json(_text(path))
    except (ValueError, TypeError):
        return None


def _run_alive(root: Path, path: Path, record: RunRecord | None) -> bool:
    if record is None:
        return path.is_dir() and head_state(RunPaths(PurePosixPath(root), path.name)) == "alive"
    return launch_alive(record) or head_state(RunPaths(PurePosixPath(record.root), record.allocation)) == "alive"


def _snapshots(root: Path, needed: Iterable[str]) -> Iterator[Left]:
    for listing in root.glob("snapshots/*/*.list"):  # each launch touches the one it uses
        folder = listing.with_suffix("")
        yield Left((folder, listing), _changed(listing), any(str(folder) in spec for spec in needed))


def _files(root: Path) -> Iterator[Left]:
    for path in (*root.glob("store/*/*"), *root.glob("cache/*/*")):
        yield Left((path,), _changed(path))


def _ray_folders() -> Iterator[Left]:
    for parent in {Path("/tmp"), Path(tempfile.gettempdir())}:  # noqa: S108 - where Ray's folders are, see remote/
        for owner in parent.glob(f"{FOLDER_PREFIX}*/{OWNER}"):
            if owner.lstat().st_uid == os.getuid() == owner.parent.lstat().st_uid:
                yield Left((owner.parent,), 0.0, True if _owner_alive(owner) else None)


def _owner_alive(owner: Path) -> bool:
    try:
        return alive_as_noted(json.loads(_text(owner)))
    except (ValueError, TypeError, KeyError):
        return True  # it is just being written


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _remove(path: Path) -> None:
    """Out of everybody's sight at once, and then away: nobody is to meet half of it."""
    away = path.with_name(f".{path.name}.expired")
    try:
        path.rename(away)
    except OSError:  # somebody else has removed it
        return
    if not away.is_dir() or away.is_symlink():
        away.unlink()
        return
    for folder, _, _ in os.walk(away):
        Path(folder).chmod(0o700)  # a snapshot's folders can't be written
    shutil.rmtree(away, ignore_errors=True)
