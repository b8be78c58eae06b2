"""A lab's Slurm cluster as its administrator sees it: its jobs, what users asked it, what can go wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hosts import cgroups, slurm_services
from hosts.host import Host
from hosts.machine import until
from hosts.place import Place

FIELD = re.compile(r"(?:^| )([A-Za-z][\w/:]*)=")
LIVING = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT"}


@dataclass(frozen=True)
class Slurm:
    """The cluster: `login` runs the controller, the others are its nodes."""

    place: Place
    hosts: Mapping[str, Host]

    @property
    def login(self) -> Host:
        """The host with the controller."""
        return next(host for host in self.hosts.values() if host.kind.slurm == "controller")

    @property
    def nodes(self) -> dict[str, Host]:
        """The compute nodes."""
        return {name: host for name, host in self.hosts.items() if host.kind.slurm == "node"}

    @property
    def memory_limits(self) -> bool:
        """Whether a job that takes more memory than it asked for is really ended."""
        return bool(cgroups.hierarchies())

    def root(self, *argv: str, check: bool = True) -> str:
        """Run a command of Slurm's as root on `login`; what it printed."""
        return self.login.run("root", argv, check=check).stdout

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        """The controller answers, and all nodes take jobs."""
        until(lambda: set(self.states().values()) == {"idle"}, "Slurm's nodes are idle", seconds)

    def states(self) -> dict[str, str]:
        """Each node's state in sinfo's short words; empty when the controller does not answer."""
        said = self.root("sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%N %t", check=False)
        return dict(line.split() for line in said.splitlines())

    def jobs(self) -> list[dict[str, str]]:
        """All jobs that the controller knows, ended ones too (for five minutes), by scontrol's names."""
        lines = self.root("scontrol", "--oneliner", "--all", "show", "jobs").splitlines()
        return [fields(line) for line in lines if line.startswith("JobId=")]

    def job(self, number: str | int) -> dict[str, str]:
        """One job, by its id."""
        return next((job for job in self.jobs() if job["JobId"] == str(number)), {})

    def state(self, number: str | int) -> str:
        """A job's state, as RUNNING; empty when the controller does not know it."""
        return self.job(number).get("JobState", "")

    def queue_empty(self) -> bool:
        """Whether no job waits, runs or ends."""
        return not any(job["JobState"] in LIVING for job in self.jobs())

    def submit(self, user: str, script: str, *options: str) -> str:
        """Run sbatch on `login`, without SSH; the job's id."""
        said = self.login.run(user, ["sbatch", "--parsable", *options], stdin=f"#!/bin/sh\n{script}\n")
        return said.stdout.strip().partition(";")[0]

    def scancel(self, *jobs: str | int) -> None:
        """End jobs, as an administrator."""
        self.root("scancel", *map(str, jobs))

    def drain(self, node: str, reason: str = "maintenance") -> None:
        """Let a node take no more jobs."""
        self.root("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    def resume(self, node: str) -> None:
        """Let a node take jobs again, and wait until it does."""
        self.root("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        until(lambda: self.states().get(node) in {"idle", "mix", "alloc"}, f"{node} takes jobs")

    def kill_slurmd(self, node: str) -> None:
        """End a node's daemon; its jobs' processes go on, and after ten seconds the controller holds it for down."""
        slurm_services.kill(self.hosts[node], "slurmd")

    def start_slurmd(self, node: str) -> None:
        """Start it again."""
        slurm_services.start(self.hosts[node], "slurmd")

    def stop_controller(self) -> None:
        """End the controller at once."""
        slurm_services.kill(self.login, "slurmctld")

    def start_controller(self) -> None:
        """Start it, with what it has written down, and wait until it answers."""
        slurm_services.start(self.login, "slurmctld")
        until(self.answers, "the controller answers")

    def restart_controller(self) -> None:
        """End the controller and start it."""
        self.stop_controller()
        self.start_controller()

    def answers(self) -> bool:
        """Whether the controller does."""
        return "is UP" in self.root("scontrol", "ping", check=False)

    def log(self, host: str) -> str:
        """What Slurm's daemons wrote on a host."""
        found = sorted((self.hosts[host].folder / "var/log/slurm").glob("*.log"))
        return "".join(path.read_text(errors="replace") for path in found)


def fields(line: str) -> dict[str, str]:
    """The `Name=value` pairs of one of scontrol's lines; values may hold blanks."""
    found = list(FIELD.finditer(line))
    ends = [*(match.start() for match in found[1:]), len(line)]
    return {match[1]: line[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}
