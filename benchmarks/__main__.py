"""All benchmarks, each in a process of its own, on one temporary home with one server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

ALL = ("startup", "scan", "snapshot", "launch", "many", "large", "ssh", "slurm")


def main() -> int:
    """Run all; gives how many are over a limit."""
    over = 0
    with tempfile.TemporaryDirectory(prefix="srf-bench-", ignore_cleanup_errors=True) as home:
        environment = {**os.environ, "SRF_HOME": home, "SRF_PROGRESS": "off"}
        for name in ALL:
            print(f"== {name}", flush=True)
            over += bool(
                subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], env=environment, check=False).returncode
            )
        subprocess.run([sys.executable, "-m", "slurm_ray_flow.cli.main", "down"], env=environment, check=False)
    return over


if __name__ == "__main__":
    sys.exit(main())
