"""Checkpoints: files that one try of a run keeps for the next one."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Optional, Union

FOLDER = "SRF_CHECKPOINTS"
"""The variable that holds the run's folder of checkpoints, in the function's process and those it starts."""


def checkpoint(name: Union[str, "os.PathLike[str]"] = "") -> Path:
    """A path for what the next try of this run is to find: after a preemption, a time limit, a lost node.

    The folder belongs to the run, not to the try, and only to its user. It lies beside the run's log on the cluster, on
    its shared file system, and goes with the run. Write beside and rename, so that a try that is ended while it
    writes leaves the last whole one:

        path = slurm_ray_flow.checkpoint("model.pt")
        if path.exists():
            model = load(path)
        ...
        save(model, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    Args:
        name: a file's name, or a path below the folder ("fold3/model.pt"); its folders are made. "" is the folder.

    Returns:
        The path. Outside of a run it lies in a folder that is empty at first, and goes when the process ends.

    Raises:
        ValueError: the name leads out of the folder.
        RuntimeError: a Ray task of a run can't tell which run it belongs to.
    """
    path = _below(Path(_folder()), name)
    (path.parent if os.fspath(name) else path).mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _below(folder: Path, name: Union[str, "os.PathLike[str]"]) -> Path:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise ValueError("{!r} leads out of the run's checkpoints: give a name such as 'model.pt'".format(str(name)))
    path = folder.joinpath(*parts)
    inside = os.path.realpath(path)
    if inside != os.path.realpath(folder) and not inside.startswith(os.path.realpath(folder) + os.sep):
        raise ValueError("{!r} leads out of the run's checkpoints through a link".format(str(name)))
    return path


def _folder() -> str:
    folder = os.environ.get(FOLDER) or _of_ray_task()
    return _private(folder) if folder else _of_this_process()


def _private(folder: str) -> str:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def _of_ray_task() -> Optional[str]:
    """In a worker of Ray: the folder of the run whose task this is."""
    if "ray" not in sys.modules or "SRF_ALLOCATION" not in os.environ:
        return None
    from slurm_ray_flow.remote.driver import ray_session

    folder = ray_session.noted_value(FOLDER)
    if folder is None:
        raise RuntimeError("a Ray task can't tell its run: call checkpoint() in the function, and hand the path on")
    return folder


@functools.lru_cache(maxsize=None)
def _of_this_process() -> str:
    import atexit
    import shutil
    import tempfile  # not needed inside a run, where this file is imported at every start

    folder = tempfile.mkdtemp(prefix="srf-checkpoints-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def folder_of(run_folder: str) -> str:
    """The folder of a run's checkpoints: its tries are ID, ID.2, ID.3, and share the first one's folder.

    Args:
        run_folder: the folder of a try.
    """
    runs, attempt = os.path.split(run_folder)
    return os.path.join(runs, attempt.partition(".")[0], "checkpoints")
