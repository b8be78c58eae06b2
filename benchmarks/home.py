"""A home for what is measured: launches, server and all go at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def own_home() -> Iterator[None]:
    """As this process's $SRF_HOME, unless there is one already, which whoever set it looks after."""
    os.environ.setdefault("SRF_PROGRESS", "off")
    if "SRF_HOME" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="srf-bench-", ignore_cleanup_errors=True) as home:
        os.environ["SRF_HOME"] = home
        try:
            yield
        finally:
            subprocess.run([sys.executable, "-m", "slurm_ray_flow.cli.main", "down"], check=False)
