"""Checkpoints: files that one try of a run keeps for the next one."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Optional, Union

FOLDER_VARIABLE = "SRF_CHECKPOINTS"
"""The variable that holds the run's folder of checkpoints, in the function's process and those it starts."""


def checkpoint(name: Union[str, "os.PathLike[str]"] = "") -> Path:
    """A path for a file that the next try of this run can read, after a preemption, a time limit or the loss of a node.

    All tries of a run share its folder of checkpoints, which only its user can read. It lies beside the run's log on
    the cluster's shared file system, and is removed with the run. Write a new file and rename it, so that a try that is
    ended while it writes leaves the last complete checkpoint:

        path = slurm_ray_flow.checkpoint("model.pt")
        if path.exists():
            model = load(path)
        ...
        save(model, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    Args:
        name: a file's name, or a path below the folder ("fold3/model.pt"); its folders are made. "" means the folder.

    Returns:
        The path. Outside of a run it lies in a new, empty folder, which is removed when the process ends.

    Raises:
        ValueError: the name leads out of the folder.
        RuntimeError: a Ray task of a run can't tell which run it belongs to.
    """
    path = _below(Path(_checkpoints_folder()), name)
    (path.parent if os.fspath(name) else path).mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _below(folder: Path, name: Union[str, "os.PathLike[str]"]) -> Path:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        raise ValueError("{!r} leads out of the run's checkpoints: give a name such as 'model.pt'".format(str(name)))
    path = folder.joinpath(*parts)
    real_path, real_folder = os.path.realpath(path), os.path.realpath(folder)
    if real_path != real_folder and not real_path.startswith(real_folder + os.sep):
        raise ValueError("{!r} leads out of the run's checkpoints through a link".format(str(name)))
    return path


def _checkpoints_folder() -> str:
    folder = os.environ.get(FOLDER_VARIABLE) or _folder_of_ray_task()
    return _make_private(folder) if folder else _temporary_folder()


def _make_private(folder: str) -> str:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def _folder_of_ray_task() -> Optional[str]:
    """In a worker of Ray: the folder of checkpoints of the run whose task this is; None elsewhere."""
    if "ray" not in sys.modules or "SRF_ALLOCATION" not in os.environ:
        return None
    from slurm_ray_flow.remote.driver import ray_session

    folder = ray_session.noted_value(FOLDER_VARIABLE)
    if folder is None:
        raise RuntimeError("a Ray task can't tell its run: call checkpoint() in the function, and hand the path on")
    return folder


@functools.lru_cache(maxsize=None)
def _temporary_folder() -> str:
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
