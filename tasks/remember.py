"""Values of earlier runs, for the option `cache`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.core.errors import PayloadError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.launch_events import Note, Warned, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.run import CallEnd, Outcome
from slurm_ray_flow.remote.shared import files
from slurm_ray_flow.tasks.install_environment import Environment
from slurm_ray_flow.tasks.run import Call, Run
from slurm_ray_flow.tasks.scan_imports import ScannedCode
from slurm_ray_flow.tasks.sync_files import Snapshot


def key_of(call: Call, code: ScannedCode, snapshot: Snapshot, environment: Environment, options: Options) -> str:
    """The cache key of a value: a digest of function, arguments, files, packages and variables; "" without a digest."""
    if not call.content:
        return ""
    inputs = [call.content, code.digest, snapshot.digest, environment.digest, environment.python]
    if environment.container:
        inputs.append(repr(environment.container))
    return hashlib.sha256(json.dumps([*inputs, options.env_vars], sort_keys=True).encode()).hexdigest()


def recall(key: str, call: Call, run: Run, options: Options) -> Outcome | None:
    """The value of an earlier run, if the options ask for one and it is young enough.

    This run's record then points to the earlier run's folder, which has its log and outcome.
    """
    if call.undigested:
        publish(Warned(f"the value is not remembered: {call.undigested} (cache=...)"))
    if not key:
        return None
    try:
        entry = json.loads(_entry_path(key).read_text())
        age = time.time() - entry["time"]
        if options.cache is None or age > options.cache:
            return None
        value = store.get(entry["digest"])["value"]
        os.utime(_entry_path(key))  # a value in use does not expire
        run.note(attempt=entry["attempt"], allocation=entry["attempt"])
    except (OSError, ValueError, KeyError, PayloadError):
        return None
    publish(Note(f"gives back the value of run {entry['run_id'][:8]}, {format_duration(age)} old (cache=...)"))
    return Outcome(value=value)


def remember(key: str, run: Run, ended: CallEnd, cluster: Cluster) -> None:
    """Keep the value of this run for later ones."""
    if not key or ended.outcome != "value" or ended.sha256 is None:
        return
    target = store.object_path(ended.sha256)
    if not target.exists():
        with cluster.fetched(run.paths.outcome, ended.most) as outcome:
            _copy(outcome, target)
    entry = {"digest": ended.sha256, "time": time.time(), "run_id": run.record.run_id, "attempt": run.record.attempt}
    write_whole(_entry_path(key), json.dumps(entry).encode())


def _entry_path(key: str) -> Path:
    return home() / "cache" / "values" / f"{key}.json"


def _copy(source: Path, target: Path) -> None:
    temporary = private_folder(target.parent) / f".{target.name}.{os.getpid()}"
    shutil.copyfile(source, temporary)
    files.rename(str(temporary), str(target))
