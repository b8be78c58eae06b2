"""What a Slurm cluster 20 ms away (each way) costs, beside others on the same Slurm in the same run. As root.

    python -m benchmarks.slurm [trivial|nodes|warm|twenty]

The cluster is that of the test hosts. The peers run on its login node, and with the environment that was built for us.
"""

from __future__ import annotations

import importlib
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import launch, slurm_peers
from benchmarks.home import own_home
from benchmarks.ssh import DELAY, line, seconds

USER = "frank"
SYMMETRIC_SECONDS = 300.0
PROJECT = """
import socket
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(ray="never")
def trivial(number: int) -> int:
    return number + 1

@slurm_ray_flow(nodes=2, cpus_per_node=2)
def squares() -> int:
    import ray

    @ray.remote(scheduling_strategy="SPREAD")
    def square(number):
        return number * number, socket.gethostname()

    assert len(ray.nodes()) == 2
    return sum(value for value, _ in ray.get([square.remote(number) for number in range(100)]))

warm = squares.with_options(keep_warm="2m")
"""


class Bench:
    """A cluster, the road to it, and a project."""

    def __init__(self, lab: Any, road: Any, project: Path) -> None:
        from slurm_ray_flow import SlurmCluster, SshConnection

        self.lab, self.login, self.project = lab, lab["login"], project
        connection = SshConnection(host="login", user=USER, key_file=lab.key(USER), config_file=road.ssh_config)
        self.folder = f"/home/{USER}/bench-{secrets.token_hex(4)}"
        self.cluster = SlurmCluster(connection=connection, root=f"{self.folder}/root", partition="cpu")

    def run(self, *argv: str, timeout: float = 600.0) -> str:
        """Run a command on the login node, without SSH."""
        return str(self.login.run(USER, argv, timeout=timeout).stdout)

    def write(self, name: str, text: str) -> str:
        """Write a file of the peers'."""
        path = f"{self.folder}/{name}"
        self.login.run(USER, ["mkdir", "-p", self.folder])
        self.login.run(USER, ["tee", path], stdin=text)
        return path

    def binaries(self) -> str:
        """The programs of the environment that was built for our function with Ray."""
        [found] = self.login.path(f"{self.folder}/root/environments").glob("*/bin/ray")
        return f"{self.folder}/root/environments/{found.parent.parent.name}/bin"

    def job(self, script: str, over: str) -> float:
        """Seconds from sbatch until a job has left its word."""
        began = time.perf_counter()
        self.run("sbatch", "--parsable", script, over)
        place = self.login.path(f"{self.folder}/{over}")
        while not place.exists():
            time.sleep(0.01)
            if time.perf_counter() - began > SYMMETRIC_SECONDS:
                raise TimeoutError(f"{script} has not ended")
        return time.perf_counter() - began


def trivial(bench: Bench, work: ModuleType) -> bool:
    """A trivial function without Ray, all unchanged, beside submitit on the login node."""
    function = work.trivial.with_options(cluster=bench.cluster)
    function(1)
    function(1)
    ours = statistics.median(seconds(lambda: function(1)) for _ in range(launch.CALLS))
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    bench.run("bash", "-lc", f"{python} -m venv {bench.folder}/peer && {bench.folder}/peer/bin/pip -q install submitit")
    script = bench.write("submitit_peer.py", slurm_peers.SUBMITIT)
    said = bench.run(f"{bench.folder}/peer/bin/python", script, f"{bench.folder}/jobs", str(launch.CALLS))
    peer = statistics.median(float(text) for text in said.splitlines() if text[:1].isdigit())
    return line(
        "trivial function, second call, over submitit", ours - peer, 2.0, f"{ours:.2f} s, submitit {peer:.2f} s"
    )


def nodes(bench: Bench, work: ModuleType) -> bool:
    """Two nodes with Ray, beside the best script by hand, and beside Ray's own command."""
    function = work.squares.with_options(cluster=bench.cluster)
    call_base = launch.base()
    call_base()
    assert function() == 328350
    bench.write("squares.py", slurm_peers.SQUARES)
    places = {"folder": bench.folder, "binaries": bench.binaries()}
    by_hand = bench.write("by-hand.sh", _filled(slurm_peers.BY_HAND, places))
    pairs = []
    for turn in range(3):
        ours = seconds(function)
        _wait_until_free(bench)
        pairs.append((ours, bench.job(by_hand, f"by-hand-{turn}"), seconds(call_base)))
        _wait_until_free(bench)
    ours, peer, base = (statistics.median(column) for column in zip(*pairs, strict=True))
    told = f"{ours:.2f} s, by hand {peer:.2f} s, base {base:.2f} s"
    good = line("two nodes with Ray, less the base, times by hand", (ours - base) / peer, 1.15, told)
    symmetric = bench.job(bench.write("symmetric.sh", _filled(slurm_peers.SYMMETRIC, places)), "symmetric")
    return line("ours, times ray symmetric-run", ours / symmetric, 0.25, f"{symmetric:.1f} s by that") and good


def warm(bench: Bench, work: ModuleType) -> bool:
    """A second call on a warm cluster of two nodes."""
    function = work.warm.with_options(cluster=bench.cluster)
    call_base = launch.base()
    call_base()
    cold = seconds(function)
    pairs = []
    for _ in range(launch.CALLS):
        time.sleep(3)  # straight after another call its driver is waited for (docs/decisions/0002)
        pairs.append((seconds(function), seconds(call_base)))
    ours, base = (statistics.median(column) for column in zip(*pairs, strict=True))
    told = f"{ours:.2f} s, base {base:.2f} s, cold {cold:.2f} s"
    good = line("warm call on two nodes, over the base", ours - base, 0.7, told)
    return line("warm, times cold", ours / cold, 0.2, "") and good


def twenty(bench: Bench, work: ModuleType) -> bool:
    """Twenty launches at once: what their scheduler and their server see of them."""
    function = work.trivial.with_options(cluster=bench.cluster)
    function(1)
    connections, before = bench.login.connections(), len(_asked(bench))
    with ThreadPoolExecutor(20) as pool:
        taken = seconds(lambda: list(pool.map(function, range(20))))
    queries = _asked(bench)[before:]
    assert bench.login.connections() == connections
    rate = len(queries) / max(1.0, taken / 2)
    return line("20 at once: queries in two seconds", rate, 1.05, f"{taken:.1f} s, {len(queries)} queries")


def _asked(bench: Bench) -> list[str]:
    """What squeue has asked the controller so far."""
    queries = [query.what for query in bench.lab.slurm.queries(USER)]
    return [what for what in queries if what in {"REQUEST_JOB_INFO", "REQUEST_JOB_USER_INFO"}]


def _filled(text: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text


def _wait_until_free(bench: Bench) -> None:
    while not bench.lab.slurm.queue_empty():
        time.sleep(0.1)


@contextmanager
def benched() -> Iterator[tuple[Bench, ModuleType]]:
    """A lab with Slurm and a road to it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    lab_class, kinds = importlib.import_module("hosts.lab").Lab, importlib.import_module("hosts.layout").SLURM
    lab = lab_class.up(f"bench-slurm-{os.getpid()}", owner=os.getpid(), kinds=kinds)
    with tempfile.TemporaryDirectory() as folder, lab.road("login", delay=DELAY) as road:
        project = Path(folder, "project")
        project.mkdir()
        (project / "pyproject.toml").write_text('[project]\nname = "bench-project"\nversion = "0"\n')
        (project / "work.py").write_text(PROJECT)
        sys.path.insert(0, str(project))
        os.chdir(project)
        try:
            yield Bench(lab, road, project), importlib.import_module("work")
        finally:
            lab.down()


def main() -> bool:
    """Measure and print; gives whether all are within their limits."""
    if os.geteuid():
        print("left out: hosts are made of namespaces, which takes root")
        return True
    with benched() as (bench, work):
        parts: dict[str, Callable[[Bench, ModuleType], bool]] = {
            "trivial": trivial,
            "nodes": nodes,
            "warm": warm,
            "twenty": twenty,
        }
        good = [parts[name](bench, work) for name in sys.argv[1:] or parts]
        return all(good)


if __name__ == "__main__":
    with own_home():
        sys.exit(not main())
