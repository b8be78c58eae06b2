"""The programs for a cluster: the files of `remote/`, as a package of their own."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

from slurm_ray_flow import remote
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.remote.agent import loader


@functools.cache
def files() -> dict[str, bytes]:
    """The files of the package `slurm_ray_flow` as it is on a cluster, by their names in it."""
    folder = Path(remote.__path__[0])
    contents = {f"remote/{path.relative_to(folder)}": path.read_bytes() for path in sorted(folder.rglob("*.py"))}
    return {"__init__.py": contents["remote/driver/package_in_run.py"], **contents}


@functools.cache
def digest() -> str:
    """The digest of all files."""
    return loader.digest_of(files())


def install(root: Path) -> Path:
    """Write the programs under a root folder, once; gives the folder to put on `sys.path`."""
    target = private_folder(root / "tools") / digest()
    if loader.is_whole(str(target)):
        with contextlib.suppress(OSError):
            os.utime(target)  # used programs do not expire
    else:
        loader.install(str(target), files())
    return target
