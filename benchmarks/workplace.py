"""The working directory of a run: 10,000 files of a snapshot copied, against `cp -r` in the same run.

Run it on an idle machine: `python -m benchmarks.workplace [rounds]`. The rest is what a launch waits for at most: the
copy is made while Ray and the driver start; what the run has written is looked for before its end is recorded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.snapshot import make_project
from slurm_ray_flow.remote.shared import working_directory
from slurm_ray_flow.remote.shared.events import RunFiles

LIMIT = 1.3


def ours(root: Path, snapshot: Path, name: str) -> tuple[float, float, float]:
    """Seconds of the copy, of looking for what was written, and of removing what was not."""
    run = RunFiles(str(root), name)
    spec = {"format": 1, "snapshot": str(snapshot), "path": ["work/project"], "working_directory": "work/project"}
    Path(run.folder).mkdir(parents=True)
    Path(run.spec).write_text(json.dumps(spec))
    began = time.perf_counter()
    working_directory.make(spec, run.folder)
    working_directory.fill(run, spec, run.folder)
    filled = time.perf_counter()
    time.sleep(0.01)
    Path(run.folder, "work/project/new").write_text("new")
    looks = time.perf_counter()
    written = working_directory.Written(run)
    assert written.event_fields()["files"]["count"] == 1, "one file was written"
    looked = time.perf_counter()
    written.remove_copies()
    return filled - began, looked - looks, time.perf_counter() - looked


def main(rounds: int) -> int:
    """Prints the medians and the ratio; 1 if it is above the limit."""
    with tempfile.TemporaryDirectory() as folder:
        snapshot, root = Path(folder, "snapshot"), Path(folder, "root")
        make_project(snapshot / "project")
        taken = []
        for number in range(rounds):
            times = ours(root, snapshot, str(number))
            began = time.perf_counter()
            subprocess.run(["cp", "-r", str(snapshot), str(Path(folder, f"peer-{number}"))], check=True)
            taken.append((*times, time.perf_counter() - began))
    copied, looked, removed, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    print(f"10,000 files copied  {copied:.3f} s; cp -r {theirs:.3f} s")
    print(f"looked through       {looked:.3f} s; unchanged ones removed {removed:.3f} s")
    print(f"ratio {copied / theirs:.2f}, at most {LIMIT}; medians of {rounds} rounds")
    return 0 if copied / theirs <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
