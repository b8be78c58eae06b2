"""What the items of a campaign cost on this machine, beside others that run the same items in the same run.

    python -m benchmarks.grid [items|commands|seconds|far|million|tasks] [--items 50000]

One pilot with two workers; its start is a part of the seconds, while the peers' servers and workers are up before. All
outcomes are on the disk at the end; the peers keep theirs in memory. Peers that this project does not depend on are
installed into a folder that is gone at the end; one that can't be is left out, with the reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.home import own_home

CORES = 2
LONGEST = 900.0
"""Seconds after which a campaign is given up."""
PEER_SECONDS = 180.0
ENGINE_SECONDS = 0.1e-3
"""The most processor time of the engine for an item."""
OVERHEAD = 1.03
"""The most time for items of a second, in times of the ideal."""

AWAY, HOME_SECONDS = 0.02, 5.0
"""Seconds to a cluster far away and as many back, and the most from an item's end there until its outcome is home."""


class Peer(NamedTuple):
    """A peer of `grid_peers.py`.

    Attributes:
        name: its name there.
        items: how many it gets, at its pace some seconds of work.
        package: what to install; "" for one that is here.
    """

    name: str
    items: int
    package: str = ""


ITEM_PEERS = (
    Peer("hyperqueue", 60, "hyperqueue==0.27.0"),
    Peer("parsl", 5_000, "parsl"),
    Peer("dask", 5_000, "distributed"),
    Peer("ray_tasks", 10_000),
    Peer("ray_actor_pool", 5_000),
    Peer("process_pool", 20_000),
    Peer("joblib", 50_000, "joblib"),
)
COMMAND_PEERS = (Peer("hyperqueue_commands", 2_000, "hyperqueue==0.27.0"), Peer("process_pool_commands", 2_000))


class Measured(NamedTuple):
    """What a campaign took.

    Attributes:
        campaign: it.
        stored: seconds until `f.campaign` returned.
        seconds: seconds until all outcomes were recorded.
        engine: processor seconds of the engine in this time.
    """

    campaign: Any
    stored: float
    seconds: float
    engine: float


def measure(function: Any, count: int) -> Measured:
    """A campaign of items with the numbers from 0 on."""
    before, began = engine_seconds(), time.perf_counter()
    campaign = function.campaign(range(count))
    stored = time.perf_counter() - began
    status = campaign.wait(LONGEST)
    seconds = time.perf_counter() - began
    engine = engine_seconds() - before
    assert status.succeeded == count, status
    wait_for_pilots(campaign)
    return Measured(campaign, stored, seconds, engine)


def wait_for_pilots(campaign: Any) -> None:
    """Wait until the pilots of a campaign that has ended have ended, too: they take none of the next one's time."""
    from slurm_ray_flow.grid.client import GridClient

    client, deadline = GridClient(), time.monotonic() + 60
    while any(pilot["state"] != "ended" for pilot in client.pilots(campaign.id)) and time.monotonic() < deadline:
        time.sleep(0.2)


def engine_pid() -> int:
    """The process of this home's engine."""
    from slurm_ray_flow.blocks.grid_engine import ensure_engine

    return ensure_engine().pid


def engine_seconds() -> float:
    """The processor time that the engine has taken so far, without that of processes that it has started."""
    fields = Path(f"/proc/{engine_pid()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def engine_memory(field: str) -> float:
    """A field of the engine's memory, such as VmRSS, in MB."""
    lines = Path(f"/proc/{engine_pid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1000


def show(what: str, seconds: float, count: int, ratio: str = "", good: bool = True) -> bool:
    """Print a line of the table; gives whether it is within its limit."""
    verdict = "" if good else "  OVER"
    print(
        f"{what:<36} {count:>9,} items {seconds:8.2f} s {count / seconds:10,.0f} items/s  {ratio}{verdict}", flush=True
    )
    return good


class Peers:
    """Runs peers, each in a process of its own, with the Python that has it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._python = folder, folder / "environment" / "bin" / "python"
        self._program = shutil.copy(Path(__file__).parent / "grid_peers.py", folder / "peer.py")

    def seconds_of(self, peer: Peer) -> float | str:
        """The seconds of a peer's items, or why there are none."""
        try:
            python = str(self._with(peer.package)) if peer.package else sys.executable
            argv = [python, str(self._program), peer.name, str(peer.items), str(CORES)]
            done = _checked(argv)
        except subprocess.CalledProcessError as error:
            return str((error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1])[:200]
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)[:200]
        return float(done.stdout.rpartition("seconds ")[2].split()[0])

    def _with(self, package: str) -> Path:
        """The Python of an environment that has a package."""
        uv = str(Path(sys.executable).with_name("uv"))
        if not self._python.exists():
            _checked([uv, "venv", "--quiet", "--python", sys.executable, str(self._python.parent.parent)])
        _checked([uv, "pip", "install", "--quiet", "--python", str(self._python), package])
        return self._python


def _checked(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=PEER_SECONDS, cwd="/")


@contextmanager
def all_peers() -> Iterator[Peers]:
    """The peers, whose environment is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="srf-peers-", ignore_cleanup_errors=True) as folder:
        yield Peers(Path(folder))


def beside(peers: Sequence[Peer], rate: Callable[[], float]) -> None:
    """Print each peer with our rate in times of its own; ours is measured anew before each, since machines vary."""
    with all_peers() as running:
        for peer in peers:
            ours, seconds = rate(), running.seconds_of(peer)
            name = peer.name.replace("_", " ")
            if isinstance(seconds, str):
                print(f"peer: {name:<30} left out: {seconds}", flush=True)
            else:
                ratio = f"ours is {ours * seconds / peer.items:.2f} times as quick"
                show(f"peer: {name}", seconds, peer.items, ratio)


def items(count: int) -> bool:
    """Trivial items; gives whether the engine takes little enough."""
    from benchmarks import functions, grid_peers

    good = True

    def rate() -> float:
        nonlocal good
        measured = measure(functions.hundred_bytes, count)
        values = measured.campaign.results()
        assert all(got == grid_peers.value(number) for number, got in enumerate(values))
        engine = measured.engine / count
        show("campaign, values of 100 bytes", measured.seconds, count, f"stored after {measured.stored:.2f} s")
        good = show("  its engine's processor time", measured.engine, count, f"{engine * 1e3:.3f} ms an item, limit "
                    f"{ENGINE_SECONDS * 1e3} ms", engine <= ENGINE_SECONDS)  # fmt: skip
        return count / measured.seconds

    beside(ITEM_PEERS, rate)
    return good


def commands() -> bool:
    """Items that run a command."""
    from benchmarks import functions

    count = 5_000

    def rate() -> float:
        measured = measure(functions.run_command, count)
        show("campaign, a command an item", measured.seconds, count)
        return count / measured.seconds

    beside(COMMAND_PEERS, rate)
    return True


def seconds() -> bool:
    """Items of a second; gives whether they take little more than the ideal."""
    from benchmarks import functions

    count, ideal = 120, 120 / CORES
    measured = measure(functions.sleep_a_second, count)
    ratio = measured.seconds / ideal
    text = f"{ratio:.3f} times the ideal {ideal:.0f} s, limit {OVERHEAD}"
    return show("campaign, items of a second", measured.seconds, count, text, ratio <= OVERHEAD)


def tasks() -> bool:
    """Prefect's own tasks, beside Prefect's own threads, in turn."""
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    from slurm_ray_flow import ClusterTaskRunner, on_the_server

    count, each = 200, 10
    double = task(lambda number: 2 * number, name="double")

    @flow
    def doubled() -> tuple[float, float]:
        double.submit(0).result()
        began = time.perf_counter()
        for number in range(each):
            double.submit(number).result()
        between = time.perf_counter()
        assert double.map(range(count)).result() == [2 * number for number in range(count)]
        return (between - began) / each, time.perf_counter() - between

    taken: dict[str, list[float]] = {"threads": [], "pilot": []}
    runners = {"threads": ThreadPoolTaskRunner(), "pilot": ClusterTaskRunner(cpus_per_node=CORES, keep_warm="1m")}
    with on_the_server():
        for name in ("threads", "pilot") * 3:
            one, all_of_them = doubled.with_options(task_runner=runners[name])()
            taken[name].append(all_of_them)
            show(f"{name}, trivial tasks of Prefect", all_of_them, count, f"one after the other {one:.3f} s each")
    ratio = sorted(taken["pilot"])[1] / sorted(taken["threads"])[1]
    print(f"  the pilot takes {ratio:.2f} times as long as the threads (medians)", flush=True)
    return True


def far() -> bool:
    """Items of a second on this machine and on two pretend clusters far away, as root; gives whether they are quick."""
    from examples.grid_demo import pretend_clusters

    from benchmarks import functions

    if os.geteuid():
        print("items on clusters far away: left out, since pretend clusters take root", flush=True)
        return True
    count, ends, delays = 1_200, list[float](), list[float]()
    with pretend_clusters(AWAY) as (clusters, _):
        campaign = functions.end_of_a_second.campaign(range(count), clusters=clusters, max_pilots=1)
        began = campaign.status().created  # environments are built before that
        for ended in campaign.results(in_order=False, timeout=LONGEST):
            delays.append(time.time() - ended)
            ends.append(ended)
        wait_for_pilots(campaign)
    ideal, took = count / (len(clusters) * CORES), max(ends) - began
    text = f"{took / ideal:.3f} times the ideal {ideal:.0f} s, limit {OVERHEAD}; first end {min(ends) - began:.1f} s"
    good = show(f"campaign, {AWAY * 1e3:.0f} ms each way", took, count, text, took <= OVERHEAD * ideal)
    delays.sort()
    home = f"median {delays[count // 2]:.1f} s, 99 % {delays[count * 99 // 100]:.1f} s, limit {HOME_SECONDS} s"
    return show("  at home after its end, at most", delays[-1], 1, home, delays[-1] <= HOME_SECONDS) and good


def million(count: int) -> bool:
    """Many items: what it takes to store them, and to look at them."""
    from benchmarks import functions
    from slurm_ray_flow.grid.client import GridClient

    disk = disk_of_home()
    measured = measure(functions.hundred_bytes, count)
    show("campaign, values of 100 bytes", measured.seconds, count, f"stored after {measured.stored:.2f} s")
    show("  its engine's processor time", measured.engine, count, f"{measured.engine / count * 1e3:.3f} ms an item")
    began = time.perf_counter()
    GridClient().campaigns()
    took = time.perf_counter() - began
    memory = f"engine {engine_memory('VmRSS'):.0f} MB, at most {engine_memory('VmHWM'):.0f} MB"
    print(f"  list of campaigns after {took:.3f} s; {memory}; disk {(disk_of_home() - disk) / 1e6:.0f} MB", flush=True)
    for in_order in (False, True):
        began = time.perf_counter()
        assert sum(1 for _ in measured.campaign.results(in_order=in_order)) == count
        show(f"  values read{' in order' if in_order else ''}", time.perf_counter() - began, count)
    return True


def disk_of_home() -> int:
    """The bytes that this home takes on the disk."""
    files = (path for path in Path(os.environ["SRF_HOME"]).rglob("*") if path.is_file())
    return sum(file.lstat().st_blocks * 512 for file in files)


def main(part: str, count: int) -> bool:
    """Measure and print; gives whether all are within their limits."""
    from benchmarks import functions

    list(functions.hundred_bytes.campaign(range(10)).results(timeout=LONGEST))  # server and engine run then
    parts: dict[str, Callable[[], bool]] = {
        "items": lambda: items(count),
        "commands": commands,
        "seconds": seconds,
        "far": far,
        "million": lambda: million(20 * count),
        "tasks": tasks,
    }
    within = [run() for name, run in parts.items() if part in {name, ""}]
    return all(within)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parts = ["", "items", "commands", "seconds", "far", "million", "tasks"]
    parser.add_argument("part", nargs="?", default="", choices=parts)
    parser.add_argument("--items", type=int, default=50_000)
    wanted = parser.parse_args()
    with own_home():
        sys.exit(not main(wanted.part, wanted.items))
