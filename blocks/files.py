"""Files at home: written whole or not at all, private to their user."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from slurm_ray_flow.core.errors import SlurmRayFlowError


def private_folder(path: Path) -> Path:
    """Make a folder that only its user can enter, and give it back.

    Raises:
        SlurmRayFlowError: it can't be made, or somebody else made it, or the link that leads to it, to read along.
    """
    try:
        _make(path)
        owners = {path.stat().st_uid, path.lstat().st_uid}
    except OSError as error:
        raise _unusable(path, f"a folder can't be made: {error.strerror}") from error
    if foreign := owners - {os.geteuid(), 0}:
        raise _unusable(path, f"a folder belongs to another user (number {min(foreign)})")
    return path


def _make(path: Path) -> None:
    if not path.is_dir():
        _make(path.parent)  # mkdir's own parents would get the umask's mode
        path.mkdir(exist_ok=True, mode=0o700)


def _unusable(path: Path, what: str) -> SlurmRayFlowError:
    advice = "see that the folder above can be written, or choose another one: $SRF_HOME, a cluster's root"
    return SlurmRayFlowError(what, where=str(path), advice=advice)


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one."""
    private_folder(path.parent)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def load_cache(path: Path) -> dict[Any, Any]:
    """A cache that `save_cache` wrote; empty where there is none or it can't be read."""
    try:
        found = pickle.loads(path.read_bytes())
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, IndexError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def save_cache(path: Path, cache: dict[Any, Any]) -> None:
    """Keep a cache of our own for the next process. A cache that can't be written is none: not an error."""
    with contextlib.suppress(OSError, SlurmRayFlowError):
        write_whole(path, pickle.dumps(cache, protocol=5))
