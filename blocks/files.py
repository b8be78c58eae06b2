"""Files at home, written atomically and private to their user."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks.processes import run
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.remote.shared import files
from slurm_ray_flow.remote.shared.protocol import OperationError


def private_folder(path: Path) -> Path:
    """Make a folder that only its user can enter, and return it.

    Raises:
        SlurmRayFlowError: it can't be made, or another user owns it or a link to it.
    """
    with _own_error():
        files.private_folder(str(path))
    return path


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file beside its place and rename it, so that a reader sees the old file or the new one."""
    with _own_error():
        files.write_whole(str(path), data, mode)


@contextlib.contextmanager
def _own_error() -> Iterator[None]:
    try:
        yield
    except OperationError as error:
        raise SlurmRayFlowError(error.what, where=error.where, advice=error.advice) from error


def tracked(folders: Sequence[str]) -> list[str]:
    """Files in these folders that git tracks although a .gitignore names them; none without git."""
    paths: list[str] = []
    for folder in folders:
        if any(folder.startswith(f"{other}/") for other in folders):
            continue
        with contextlib.suppress(SlurmRayFlowError):
            command = ["git", "-C", folder, "ls-files", "-z", "--cached", "--ignored", "--exclude-standard"]
            paths += [f"{folder}/{name}" for name in run(command, timeout=10).stdout.split("\0") if name]
    return paths


def load_cache(path: Path) -> dict[Any, Any]:
    """A cache that `save_cache` wrote; empty if it is missing or can't be read."""
    try:
        cache = pickle.loads(path.read_bytes())
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, IndexError, TypeError):
        return {}
    return cache if isinstance(cache, dict) else {}


def save_cache(path: Path, cache: dict[Any, Any]) -> None:
    """Save a cache for the next process; a failure is no error."""
    with contextlib.suppress(OSError, SlurmRayFlowError):
        write_whole(path, pickle.dumps(cache, protocol=5))
