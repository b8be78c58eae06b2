"""What an SSH server 20 ms away (each way) costs, beside bare commands on the same road in the same run. As root.

    python -m benchmarks.ssh

The server is one of the test hosts; the road is a relay that delays and counts, as long for the peers as for us. The
bare commands use OpenSSH with a connection that is open already, as ours is, except where the line says otherwise.
"""

from __future__ import annotations

import importlib
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import launch
from benchmarks.home import own_home

DELAY = 0.02
USER = "frank"
GIB = 1024**3
MODULES = 300
BUILT = ["numpy==2.2.6", "scipy==1.15.3", "scikit-learn==1.7.2"]
MORE = "idna==3.10"
PROJECT = """
from slurm_ray_flow import slurm_ray_flow
import helper

@slurm_ray_flow(ray="never", environment=["six==1.17.0"], include=["."])
def trivial(number: int) -> int:
    return helper.ONE + number

@slurm_ray_flow(ray="never", environment=["six==1.17.0"])
def same(value: object) -> object:
    return value
"""


class Bench:
    """A server, a road to it, and a project."""

    def __init__(self, lab: Any, road: Any, project: Path) -> None:
        from slurm_ray_flow import SshConnection, SshServer

        self.lab, self.road, self.project, self.host = lab, road, project, lab["desi"]
        connection = SshConnection(host="desi", user=USER, key_file=lab.key(USER), config_file=road.ssh_config)
        self.root = f"/home/{USER}/bench-{secrets.token_hex(4)}"
        self.server = SshServer(connection=connection, root=self.root, lock_path=f"/tmp/{secrets.token_hex(4)}.lock")
        self.ssh = ["ssh", "-F", str(road.ssh_config), "-i", lab.key(USER), "-l", USER]
        self.shared = [*self.ssh, "-o", f"ControlPath={project.parent}/master"]

    def counts_at_submission(self) -> Any:
        """What has passed over the road when the next run's head begins."""
        runs = self.host.path(f"{self.root}/runs")
        before = set(runs.glob("*/events.jsonl"))
        while set(runs.glob("*/events.jsonl")) <= before:
            time.sleep(0.002)
        return self.road.counts()

    def bare(self, *command: str) -> None:
        """A command on the server, over the open connection."""
        subprocess.run([*self.shared, "desi", *command], check=True, capture_output=True)

    def rsync(self, *arguments: str, shared: bool = True, names: bytes = b"") -> None:
        """OpenSSH's rsync."""
        shell = " ".join(self.shared if shared else self.ssh)
        subprocess.run(["rsync", "-e", shell, *arguments], check=True, capture_output=True, input=names)


def make_project(project: Path) -> ModuleType:
    """300 modules of two kilobytes, and one with functions to launch."""
    project.mkdir()
    (project / "pyproject.toml").write_text('[project]\nname = "bench-project"\nversion = "0"\n')
    for number in range(MODULES):
        (project / f"module_{number}.py").write_text(f"VALUE = {number}\n" * 150)
    (project / "helper.py").write_text("ONE = 1\n")
    (project / "work.py").write_text(PROJECT)
    sys.path.insert(0, str(project))
    os.chdir(project)
    return importlib.import_module("work")


def line(what: str, value: float, limit: float, told: str) -> bool:
    """Print a line of the table; gives whether it is within its limit."""
    print(f"{what:<44} {told}   {value:.2f} (limit {limit})  {'ok' if value <= limit else 'OVER'}", flush=True)
    return value <= limit


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def trivial(bench: Bench, work: ModuleType) -> bool:
    """A trivial function, everything unchanged."""
    function = work.trivial.with_options(cluster=bench.server)
    call_base = launch.base()
    call_base()
    function(1)
    pairs = [(seconds(lambda: function(1)), seconds(call_base)) for _ in range(launch.CALLS)]
    ours, base = (statistics.median(column) for column in zip(*pairs, strict=True))
    good = line("trivial function, second call, over the base", ours - base, 1.5, f"{ours:.2f} s, base {base:.2f} s")
    before = bench.road.counts()
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(bench.counts_at_submission)
        function(1)
    told = f"{submitted.result().sent - before.sent} bytes sent"
    return line("round trips until it is submitted", submitted.result().turns - before.turns, 8, told) and good


def edit(bench: Bench, work: ModuleType) -> bool:
    """One line of one of 300 files: bytes of the whole launch, seconds of the snapshot beside bare rsync."""
    from slurm_ray_flow.core.snapshot import Hashes, manifest

    function = work.trivial.with_options(cluster=bench.server)
    (bench.project / "module_7.py").write_text("VALUE = 70\n")
    before = bench.road.counts()
    function(1)
    sent = (bench.road.counts().sent - before.sent) / 1024
    hashes: Hashes = {}

    def ours() -> None:
        listed = manifest([], project=bench.project, working_directory=bench.project, include=["."], hashes=hashes)
        assert not bench.server.send(listed, "bench").reused

    def theirs(turn: int) -> None:
        options = ["-a", "--exclude=__pycache__", f"--link-dest=../{turn - 1}", "./", f"desi:peer/{turn}/"]
        bench.rsync(*options)

    bench.bare("mkdir", "-p", "peer")
    theirs(0)
    ours_first = seconds(ours)
    pairs = []
    for turn in range(1, launch.CALLS + 1):
        (bench.project / "module_5.py").write_text(f"VALUE = {turn}\n")
        pairs.append((seconds(ours), seconds(lambda turn=turn: theirs(turn))))  # type: ignore[misc]
    mine, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    good = line("KiB sent by a launch after a one-line edit", sent, 64, f"of {MODULES} files")
    told = f"{mine:.2f} s, rsync {peer:.2f} s; the first {ours_first:.2f} s"
    return line("its snapshot, times bare rsync", mine / peer, 1.3, told) and good


def one_package_more(bench: Bench) -> bool:
    """An environment that is there, plus one small package, beside pip from nothing."""
    from slurm_ray_flow.blocks import environments

    def build(digest: str, requirements: list[str]) -> None:
        spec = {"root": bench.root, "digest": digest, "constraints": [], "options": [], "requirements": requirements}
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        environments.build(
            bench.server,
            {**spec, "version": version},
            lambda _: None,
            send=bench.server.agent.copy_folder,
            policy="",
            wheels="index",
        )

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = f"python{version}"
    script = f"{python} -m venv peer-venv && peer-venv/bin/pip install -q --no-cache-dir {' '.join([*BUILT, MORE])}"
    first = seconds(lambda: build("first", BUILT))
    more = seconds(lambda: build("second", [*BUILT, MORE]))
    pip = seconds(lambda: bench.bare("bash", "-lc", f"'{script}'"))
    return line(
        "one package more, times pip", more / pip, 0.1, f"{more:.2f} s, pip {pip:.1f} s, ours first {first:.1f} s"
    )


def gibibyte(bench: Bench, work: ModuleType) -> bool:
    """1 GiB there and back, beside rsync of the same file, and the memory that it takes at home."""
    value = os.urandom(GIB)
    function = work.same.with_options(cluster=bench.server)
    function(b"")
    ours = seconds(lambda: function(value))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    good = line("its peak memory at home, in GiB", peak, 2.5, "argument and value are two")
    file = bench.project.parent / "large"
    file.write_bytes(value)
    there = seconds(lambda: bench.rsync(str(file), "desi:large", shared=False))
    back = seconds(lambda: bench.rsync("desi:large", f"{file}.back", shared=False))
    told = f"{ours:.1f} s, rsync {there:.1f} s and {back:.1f} s"
    return line("1 GiB there and back, times rsync", ours / (there + back), 1.3, told) and good


@contextmanager
def benched() -> Iterator[tuple[Bench, ModuleType]]:
    """A lab with a road, and an open connection for the peers."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    lab_class = importlib.import_module("hosts.lab").Lab
    lab = lab_class.up(f"bench-{os.getpid()}", owner=os.getpid())
    with tempfile.TemporaryDirectory() as folder, lab.road("desi", delay=DELAY) as road:
        work = make_project(Path(folder, "project"))
        bench = Bench(lab, road, Path(folder, "project"))
        master = subprocess.Popen([*bench.shared, "-MN", "desi"], stderr=subprocess.DEVNULL)
        try:
            yield bench, work
        finally:
            master.terminate()
            master.wait()
            lab.down()


def main() -> bool:
    """Measure and print; gives whether all are within their limits."""
    if os.geteuid():
        print("left out: hosts are made of namespaces, which takes root")
        return True
    with benched() as (bench, work):
        wanted = sys.argv[1:] or ["trivial", "edit", "package", "gibibyte"]
        parts = {
            "trivial": lambda: trivial(bench, work),
            "edit": lambda: edit(bench, work),
            "package": lambda: one_package_more(bench),
            "gibibyte": lambda: gibibyte(bench, work),
        }
        good = [parts[name]() for name in wanted]
        return all(good)


if __name__ == "__main__":
    with own_home():
        sys.exit(not main())
