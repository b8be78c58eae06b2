"""The list of 10,000 runs, `srf runs --last 10000`, against a plain program that prints as many rows.

Run as `python -m benchmarks.runs [runs]`. Each figure is the best processor time of several fresh processes, taken in
turn: the list is read from the catalog, which the first call fills. The peers read the same rows with sqlite3 from the
catalog, and with json from one file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from benchmarks.startup import measured
from slurm_ray_flow.core.run import RunRecord

ROUNDS = 3
SECONDS = 0.3
"""For the list, beyond the start of the command: that of `srf --help`, which imports the same."""
WITHOUT_PREFECT = """
import atexit, sys
from slurm_ray_flow.cli.main import main
atexit.register(lambda: 'prefect' in sys.modules and print("Prefect was imported", file=sys.stderr))
sys.argv = ["srf", "runs"]
main()
"""


def main(number: int) -> int:
    """Print the times and their ratios; 1 if the list takes too long."""
    with tempfile.TemporaryDirectory(prefix="srf-bench-") as home:
        os.environ["SRF_HOME"] = home
        make_records(Path(home, "runs"), number)
        srf = ["-m", "slurm_ray_flow.cli.main"]
        subprocess.run([sys.executable, *srf, "runs"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-c", WITHOUT_PREFECT], check=True, stdout=subprocess.DEVNULL)
        database, lines = str(Path(home, "catalog.db")), Path(home, "rows.json")
        by_sqlite = (
            "import sqlite3; query = 'SELECT run_id, function, cluster, state, created, ended_at FROM runs "
            f"ORDER BY changed DESC'\nfor row in sqlite3.connect({database!r}).execute(query): print(*row)"
        )
        listed = subprocess.run([sys.executable, "-c", by_sqlite], check=True, capture_output=True, text=True).stdout
        lines.write_text(json.dumps([line.split() for line in listed.splitlines()]))
        by_json = f"import json\nfor row in json.load(open({str(lines)!r})): print(*row)"
        best = measured(
            {
                "python": ["-c", "pass"],
                "srf --help": [*srf, "--help"],
                "srf runs": [*srf, "runs"],
                f"srf runs --last {number}": [*srf, "runs", "--last", str(number)],
                "peer: sqlite3": ["-c", by_sqlite],
                "peer: json": ["-c", by_json],
            },
            ROUNDS,
        )
        for name, value in best.items():
            print(f"{name:<28} {value:6.3f} s")
        start, whole = best["srf --help"], best[f"srf runs --last {number}"]
        for peer in ("peer: sqlite3", "peer: json"):
            print(f"the list takes {(whole - start) / (best[peer] - best['python']):.1f} times its {peer}")
        over = whole - start > SECONDS
        print(f"beyond the start {whole - start:.3f} s, limit {SECONDS} s{'   OVER' if over else ''}")
        return int(over)


def make_records(folder: Path, number: int) -> None:
    """As many runs that have ended."""
    folder.mkdir()
    for count in range(number):
        name, created = str(uuid.uuid4()), 1.7e9 + count
        kind = ("local", "local-machine") if count % 2 else ("desi", "ssh-server")
        record = RunRecord(name, name, *kind, "/r", name, name, "m:train", 1, 1, "boot", created=created)
        ended = dataclasses.replace(record, ended="succeeded" if count % 9 else "failed", ended_at=created + 60)
        (folder / f"{name}.json").write_text(ended.to_json())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
