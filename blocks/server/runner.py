"""Temporary files of Prefect's runner, in `serve` and in workers; `python -m` of this module is Prefect's command."""

from __future__ import annotations

import contextlib
import runpy
import tempfile
from collections.abc import Iterator

from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.server.files import server_files


@contextlib.contextmanager
def temporary_files_of_our_own() -> Iterator[None]:
    """Make temporary files of this process, but not of its children, in a folder of its user.

    The runner of Prefect 3.8 keeps its files in /tmp/runner_storage, which belongs to the first user of a machine who
    starts a runner; the runners of other users fail.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(private_folder(server_files().temporary))
    try:
        yield
    finally:
        tempfile.tempdir = before


if __name__ == "__main__":
    with temporary_files_of_our_own():
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
