"""Our programs for a cluster: the files of `remote/`, as a package of their own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from slurm_ray_flow import remote
from slurm_ray_flow.blocks.files import private_folder, write_whole


@functools.cache
def files() -> dict[str, bytes]:
    """The files of the package `slurm_ray_flow` as it is on a cluster, by their names in it."""
    folder = Path(remote.__path__[0])
    found = {f"remote/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.py"))}
    return {"__init__.py": found["remote/inside.py"], **found}


@functools.cache
def digest() -> str:
    """Names the content of all files."""
    state = hashlib.sha256()
    for name, data in sorted(files().items()):
        state.update(f"{name}\0{len(data)}\0".encode() + data)
    return state.hexdigest()[:16]


def install(root: Path) -> Path:
    """Write the programs under a root folder, once; gives the folder to put on `sys.path`."""
    target = root / "tools" / digest()
    if target.is_dir():
        with contextlib.suppress(OSError):
            os.utime(target)  # what is in use does not expire
        return target
    beside = Path(tempfile.mkdtemp(dir=private_folder(target.parent), prefix="."))
    for name, data in files().items():
        write_whole(beside / "slurm_ray_flow" / name, data)
    with contextlib.suppress(OSError):  # another process was first
        os.rename(beside, target)
    shutil.rmtree(beside, ignore_errors=True)
    return target
