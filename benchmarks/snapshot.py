"""Snapshot of 10,000 files with one changed, against bare rsync with the same options in the same run.

Run it on an idle machine: `python benchmarks/snapshot.py [rounds]`. Ours is the manifest, its digest, the transfer, the
check and the rename; the peer is one rsync that is told the names. They take turns. The peer's folders are as deep as
ours: rsync 3.5 opens each component of --link-dest for each file, which is worth 0.1 s here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath

from slurm_ray_flow.blocks import rsync
from slurm_ray_flow.blocks.transfer import LocalTarget, send_snapshot
from slurm_ray_flow.core.snapshot import Hashes, Manifest, manifest

FOLDERS, FILES = 100, 100
LIMIT = 1.3


def make_project(project: Path) -> None:
    """Writes 10,000 modules of a few hundred bytes."""
    for folder in range(FOLDERS):
        (project / f"package_{folder}").mkdir(parents=True)
        for file in range(FILES):
            text = f"VALUE = {folder * file}\n" * 30
            (project / f"package_{folder}" / f"module_{file}.py").write_text(text)
    (project / ".gitignore").write_text("__pycache__/\n*.py[cod]\n.venv\nbuild/\ndist/\n*.egg-info/\n/data/\n.env\n")


def ours(project: Path, root: Path, hashes: Hashes) -> tuple[float, float, bool, Manifest]:
    """Seconds of all, seconds of the manifest, whether the snapshot was there already, and the manifest."""
    began = time.perf_counter()
    listed = manifest([], project=project, working_directory=project, include=["."], hashes=hashes)
    listed_after = time.perf_counter() - began
    sent = send_snapshot(listed, target=LocalTarget(PurePosixPath(root)), project_key="benchmark")
    return time.perf_counter() - began, listed_after, sent.reused, listed


def bare(project: Path, earlier: Path, folder: Path, names: bytes) -> float:
    """Seconds of one rsync with the options of ours."""
    folder.mkdir(parents=True)
    command = ["rsync", "--files-from=-", "--from0", "--timeout=600", *rsync.FILES, f"--link-dest={earlier}"]
    command += ["--out-format=%i %n", "--stats", "--no-human-readable", f"{project}/", f"{folder}/"]
    began = time.perf_counter()
    subprocess.run(command, input=names, check=True, capture_output=True)
    return time.perf_counter() - began


def main(rounds: int) -> int:
    """Prints the medians and the ratio; 1 if it is above the limit."""
    with tempfile.TemporaryDirectory() as folder:
        project, root, peer = Path(folder, "project"), Path(folder, "root"), Path(folder, "peer/snapshots/benchmark")
        make_project(project)
        hashes: Hashes = {}
        time.sleep(2.1)  # a file that was just written is never taken from the cache
        first = ours(project, root, hashes)
        names = b"\0".join(os.fsencode(entry.place.removeprefix("project/")) for entry in first[3].entries)
        bare(project, peer / "none" / "project", peer / "0" / "project", names)
        taken = []
        for turn in range(1, rounds + 1):
            (project / "package_5" / "module_5.py").write_text(f"VALUE = {turn}\n")
            all_of_it, listed, _, _ = ours(project, root, hashes)
            earlier, folder_now = peer / str(turn - 1) / "project", peer / str(turn) / "project"
            taken.append((all_of_it, listed, bare(project, earlier, folder_now, names)))
        again = ours(project, root, hashes)
    mine, listing, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    ratio = mine / theirs
    print(f"first snapshot         {first[0]:.3f} s, of it the manifest {first[1]:.3f} s")
    print(f"one of 10,000 changed  {mine:.3f} s, of it the manifest {listing:.3f} s; bare rsync {theirs:.3f} s")
    print(f"nothing changed        {again[0]:.3f} s, of it the manifest {again[1]:.3f} s (reused: {again[2]})")
    print(f"ratio {ratio:.2f}, at most {LIMIT}; medians of {rounds} rounds")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
