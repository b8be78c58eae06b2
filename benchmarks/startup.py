"""What it costs to start: `srf --help`, a look at a run, and the package beside Prefect, each against a peer.

Run as `python -m benchmarks.startup`. Each figure is the best of several fresh processes, the peers in turn. What
counts is processor time, on which other work on the machine weighs least: a start computes and waits for nothing.
`-X importtime` says what the dearest imports are. Bytecode is kept between the processes, as where users have installed
it.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile

from benchmarks.home import own_home

ROUNDS, ROUNDS_OF_PREFECT = 7, 3
HELP_SECONDS, IMPORT_SECONDS = 0.4, 0.15
RUN_TIMES = 2.5
"""A command that looks at a run takes at most so many times what `srf --help` does; with Prefect it would be six."""
PEER = "import cyclopts; app = cyclopts.App(name='peer'); app.command(lambda: None, name='verb'); app(['--help'])"
QUICK = {
    "python": ["-c", "pass"],
    "a command of cyclopts, --help": ["-c", PEER],
    "srf --help": ["-m", "slurm_ray_flow.cli.main", "--help"],
    "srf attach RUN": ["-m", "slurm_ray_flow.cli.main", "attach"],
}
SLOW = {
    "import prefect": ["-c", "import prefect"],
    "import slurm_ray_flow, too": ["-c", "import prefect, slurm_ray_flow"],
    "Prefect's decorator": ["-c", "from prefect import flow"],
    "ours": ["-c", "from slurm_ray_flow import slurm_ray_flow"],
    "a decorated function": ["-c", "from slurm_ray_flow import slurm_ray_flow; slurm_ray_flow(print)"],
    "a flow of Prefect": ["-c", "from prefect import flow; flow(print)"],
}


def main() -> int:
    """Measure all; gives how many are over a limit."""
    with own_home():
        run = submitted()
        quick = {name: [*words, run] if words[-1] == "attach" else words for name, words in QUICK.items()}
        best = {**measured(quick, ROUNDS), **measured(SLOW, ROUNDS_OF_PREFECT)}
    for name, value in best.items():
        print(f"{name:<32} {value:6.3f} s")
    imported = best["import slurm_ray_flow, too"] - best["import prefect"]
    limits = {
        "srf --help": (best["srf --help"], HELP_SECONDS),
        "import slurm_ray_flow, over Prefect": (imported, IMPORT_SECONDS),
        "srf attach RUN": (best["srf attach RUN"], RUN_TIMES * best["srf --help"]),
    }
    over = 0
    for name, (value, limit) in limits.items():
        over += value > limit
        print(f"{name:<38} {value:6.3f} s, limit {limit:.3f} s{'' if value <= limit else '   OVER'}")
    times = best["srf --help"] / best["a command of cyclopts, --help"]
    decorator = best["ours"] - best["Prefect's decorator"]
    print(f"srf --help takes {times:.2f} times its peer, and our decorator {decorator:+.3f} s against Prefect's")
    dearest(["-m", "slurm_ray_flow.cli.main", "--help"])
    dearest(["-c", "from prefect import flow; from slurm_ray_flow import slurm_ray_flow"], only="slurm_ray_flow")
    return over


def submitted() -> str:
    """A run on this machine that has ended; gives its id."""
    code = "from benchmarks.functions import plus_one; run = plus_one.submit(41); run.result(); print(run.run_id)"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[-1]


def measured(cases: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """The best time of each, taken in turn."""
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, words in cases.items():
            best[name] = min(best[name], seconds(words))
    return best


def seconds(words: list[str]) -> float:
    """The processor time of a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=_plain())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def dearest(words: list[str], only: str = "", number: int = 5) -> None:
    """Print the imports that cost most by themselves."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True, env=_plain()
    )
    rows = re.findall(r"import time: +(\d+) \| +(\d+) \| +(\S+)", done.stderr)
    costs = sorted(((int(own), name) for own, _, name in rows if only in name), reverse=True)
    print(f"dearest of {len(rows)}: " + ", ".join(f"{name} {own / 1000:.0f} ms" for own, name in costs[:number]))


@functools.cache
def _plain() -> dict[str, str]:
    kept = tempfile.mkdtemp(prefix="srf-bench-")
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    others = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**others, "PYTHONPYCACHEPREFIX": kept}


if __name__ == "__main__":
    sys.exit(main())
