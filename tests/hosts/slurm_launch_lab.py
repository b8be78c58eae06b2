"""A Slurm cluster that functions are launched on, and what is there of their jobs."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosts.host import Host
from hosts.lab import Lab
from hosts.launcher import USER, Launcher, give_uv
from hosts.layout import ALICE
from hosts.slurm import ENDED
from slurm_ray_flow import SlurmCluster, SshConnection
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.core.scheduler import run_of
from slurm_ray_flow.interface.handle import Handle
from support import BOUND, wait_for

ENDING_SECONDS = 60


class SlurmLaunchLab(Launcher):
    """A lab's Slurm under a name and a root folder of these tests' own. One environment serves all launches."""

    def __init__(self, lab: Lab, project: Path, name: str) -> None:
        super().__init__(lab["login"], project)
        self.lab, self.slurm, self.name = lab, lab.slurm, name
        self.root = f"/home/{USER}/launches-{secrets.token_hex(4)}"
        give_uv(self.host, self.root)
        connection = SshConnection(host="login", config_file=Path(lab.ssh_config), connect_timeout=5)
        self.block = SlurmCluster(connection=connection, root=self.root)
        with connected(ensure_server(print)):
            self.block.save(name, overwrite=True)

    def on(self, function: Any, **options: Any) -> Any:
        """A function of the project, on this cluster."""
        return function.with_options(cluster=options.pop("cluster", self.name), **options)

    def but(self, **fields: Any) -> SlurmCluster:
        """This cluster with other settings."""
        return self.block.model_copy(update=fields)

    def begun(self, function: Any, *arguments: Any, **options: Any) -> Begun:
        """A run of a function that notes that it runs, and waits for a word to go on."""
        folder = self.folder()
        handle = self.on(function, **options).submit(folder, *arguments)
        run = Begun(self, folder, handle)
        wait_for(lambda: self.starts(folder))
        return run

    def waiting(self, function: Any, *arguments: Any, **options: Any) -> Begun:
        """The same of a run that can't begin yet: it is in the queue."""
        folder = self.folder()
        handle = self.on(function, **options).submit(folder, *arguments)
        assert self.job(handle.run_id)["JobState"] == "PENDING"
        return Begun(self, folder, handle)

    def events(self, run_id: str) -> list[str]:
        """What a run's head has noted, by name."""
        path = self.host.path(f"{self.root}/runs/{run_id}/events.jsonl")
        return [json.loads(line)["event"] for line in path.read_text().splitlines()]

    @contextlib.contextmanager
    def without(self, node: Host) -> Iterator[None]:
        """A node has no power while the block runs; when it boots, its `/tmp` is emptied, as that of most nodes is."""
        with self.lab.off(node.name):
            yield
        for path in temporary(node):
            shutil.rmtree(path)
        self.slurm.resume(node.name)

    def jobs(self, run_id: str) -> list[dict[str, str]]:
        """Slurm's jobs of a run, ended ones too."""
        return [job for job in self.slurm.jobs() if run_of(job["JobName"]).partition(".")[0] == run_id]

    def job(self, run_id: str) -> dict[str, str]:
        """The one job of a run."""
        [found] = self.jobs(run_id)
        return found

    def named(self, function: str) -> list[dict[str, str]]:
        """The jobs of all runs of a function that have not ended."""
        return [
            job
            for job in self.slurm.jobs()
            if job["JobName"].partition(".")[0] == function and job["JobState"] not in ENDED
        ]

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Somebody else has all nodes while the block runs."""
        job = self.slurm.submit("frank", "sleep 3000", "--nodes=2", "--exclusive", "--output=/dev/null")
        wait_for(lambda: self.slurm.state(job) == "RUNNING")
        try:
            yield
        finally:
            self.slurm.scancel(job)

    @contextlib.contextmanager
    def full_but(self, run: Begun) -> Iterator[None]:
        """Somebody else has all that a run leaves of the nodes while the block runs."""
        cpus = {name: "3" if name == run.node.name else "4" for name in self.slurm.nodes}
        options = [["--mem=100", f"--nodelist={name}", f"--cpus-per-task={count}"] for name, count in cpus.items()]
        found = [self.slurm.submit("frank", "sleep 3000", "--output=/dev/null", *each) for each in options]
        wait_for(lambda: {self.slurm.state(job) for job in found} == {"RUNNING"})
        try:
            yield
        finally:
            self.slurm.scancel(*found)

    @contextlib.contextmanager
    def drained(self) -> Iterator[None]:
        """No node takes a job while the block runs."""
        for name in self.slurm.nodes:
            self.slurm.drain(name)
        try:
            yield
        finally:
            for name in self.slurm.nodes:
                self.slurm.resume(name)

    def left(self) -> list[str]:
        """What is there of the user on any node: processes, and files outside of the home."""
        found = []
        for name, host in self.slurm.nodes.items():
            found += [f"{name}: {' '.join(argv)}" for pid, argv in host.processes().items() if belongs(pid)]
        for name, host in self.lab.hosts.items():
            found += [f"{name}: {path}" for path in temporary(host)]
        return found

    def over(self, seconds: int = BOUND) -> None:
        """No job is in the queue, and nothing is left of any."""
        wait_for(lambda: self.slurm.queue_empty() and not self.left(), seconds)

    def _active(self) -> list[str]:
        return [job["JobName"] for job in self.slurm.jobs() if job["JobState"] not in {*ENDED, "COMPLETING"}]

    def clear(self) -> None:
        """End what a test has left at home; on the cluster nothing may be left."""
        self.end_scripts()
        with contextlib.suppress(AssertionError):  # a value is home a moment before its job has ended
            wait_for(lambda: not self._active(), ENDING_SECONDS)
        forgotten = self._active()
        self.slurm.scancel_all()
        wait_for(lambda: not self.left())
        assert forgotten == []


class Begun:
    """A run of a function that notes that it runs and waits for a word to go on."""

    def __init__(self, lab: SlurmLaunchLab, folder: str, handle: Handle) -> None:
        self.lab, self.folder, self.handle, self.id = lab, folder, handle, handle.run_id

    @property
    def job(self) -> dict[str, str]:
        return self.lab.job(self.id)

    @property
    def node(self) -> Host:
        """Where its head runs."""
        return self.lab.slurm.nodes[self.job["BatchHost"]]

    def go(self) -> None:
        self.lab.go(self.folder)


def belongs(pid: int) -> bool:
    """Whether a process is the user's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid == ALICE.uid
    return False


def temporary(host: Host) -> list[Path]:
    """The user's files in the folders that are everybody's."""
    found = []
    for path in (path for place in ("/tmp", "/dev/shm") for path in host.path(place).iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_uid == ALICE.uid:
                found.append(path)
    return found
