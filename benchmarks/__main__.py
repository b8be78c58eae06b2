"""All benchmarks, each in a process of its own, on one temporary home with one server."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.home import own_home

ALL = (
    "startup", "runs", "scan", "snapshot", "workplace", "launch", "many", "large", "grid", "fairness", "ssh", "slurm",
)  # fmt: skip


def main() -> int:
    """Run all; gives how many are over a limit."""
    over = 0
    with own_home():
        for name in ALL:
            print(f"== {name}", flush=True)
            over += bool(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    return over


if __name__ == "__main__":
    sys.exit(main())
