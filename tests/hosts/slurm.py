"""A lab's Slurm cluster as its administrator sees it: its jobs, what users asked it, what can go wrong with it."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from hosts import cgroups, faults, slurm_services
from hosts.files import HERE
from hosts.host import Host
from hosts.layout import EVERYBODY
from hosts.machine import command, until
from hosts.place import Place

FIELD = re.compile(r"(?:^| )([A-Za-z][\w/:]*)=")
ASKED = re.compile(r"^\[(\S+)\] slurmctld_req: received opcode (\S+) from \S+ uid (\d+)$", re.MULTILINE)
CONF = "/etc/slurm/slurm.conf"
TAKING = {"idle", "mix", "alloc"}
SLOWEST, PAUSE = 180.0, 0.1
"""Seconds that Slurm may take: it waits, kills, waits for the nodes' answers. And seconds between two questions."""
ENDED = {
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "PREEMPTED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
}


@dataclass(frozen=True)
class Query:
    """What a user's program asked the controller: when, and what, as REQUEST_JOB_INFO."""

    time: float
    what: str


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

    @property
    def accounting(self) -> bool:
        """Whether it keeps accounts: sacct works."""
        return self.login.path("/etc/slurm/slurmdbd.conf").exists()

    def root(self, *argv: str, check: bool = True) -> str:
        """Run a command of Slurm's as root on `login`; what it printed."""
        return self.login.run("root", argv, check=check).stdout

    def wait_until_ready(self) -> None:
        """The controller answers, and all nodes take jobs."""
        self.until(lambda: set(self.states().values()) == {"idle"}, "Slurm's nodes are idle")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that Slurm is asked about; a minute at most."""
        until(condition, what, SLOWEST, PAUSE)

    def until_state(self, job: str | int, state: str) -> None:
        """Wait until a job is in this state."""
        self.until(lambda: self.state(job) == state, f"job {job} is {state}")

    def states(self) -> dict[str, str]:
        """Each node's state in sinfo's short words; empty when the controller does not answer."""
        said = self.root("sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%N %t", check=False)
        return dict(line.split() for line in said.splitlines())

    def until_written(self, job: str | int) -> None:
        """Wait until the controller has written down what it knows of a job: that outlives its death."""
        file, now = self.login.path("/var/spool/slurmctld/job_state"), time.time()
        self.root("scontrol", "update", f"JobId={job}", "AdminComment=something to write down")
        self.until(lambda: file.exists() and file.stat().st_mtime > now, "the jobs are written down")

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
        return all(job["JobState"] in ENDED for job in self.jobs())

    def queries(self, user: str) -> list[Query]:
        """All that a user has asked the controller so far: squeue, scontrol, sbatch, scancel, sinfo, srun."""
        uid = next(str(one.uid) for one in EVERYBODY if one.name == user)
        found = ASKED.findall(self._read("login", "slurmctld"))
        return [Query(datetime.fromisoformat(time).timestamp(), what) for time, what, who in found if who == uid]

    def accounted(self, name: str) -> list[dict[str, str]]:
        """The rows that accounting has for the jobs of this name, steps too, by sacct's names; needs accounting."""
        said = self.root("sacct", "--allusers", "--duplicates", "--parsable2", "--format=ALL", f"--name={name}")
        head, *rows = (line.split("|") for line in said.splitlines())
        return [dict(zip(head, row, strict=True)) for row in rows]

    def submit(self, user: str, script: str, *options: str) -> str:
        """Run sbatch on `login`, without SSH; the job's id."""
        said = self.login.run(user, ["sbatch", "--parsable", *options], stdin=f"#!/bin/sh\n{script}\n")
        return said.stdout.strip().partition(";")[0]

    def scancel(self, *jobs: str | int) -> None:
        """End jobs, as an administrator."""
        if jobs:
            self.root("scancel", *map(str, jobs))

    def scancel_all(self) -> None:
        """End all jobs there are, and wait until none is left."""
        self.scancel(*(job["JobId"] for job in self.jobs() if job["JobState"] not in ENDED))
        self.until(self.queue_empty, "the queue is empty")

    def end_soon(self, job: str | int, seconds: int = 1) -> None:
        """Let a running job's time be over; Slurm looks every 30 s, so it becomes TIMEOUT within half a minute."""
        self.root("scontrol", "update", f"JobId={job}", f"EndTime=now+{seconds}")

    def drain(self, node: str, reason: str = "maintenance") -> None:
        """Let a node take no more jobs."""
        self.root("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    def resume(self, node: str) -> None:
        """Let a node take jobs again, and wait until it does."""
        self.root("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.until(lambda: self.states().get(node) in TAKING, f"{node} takes jobs")

    def kill_slurmd(self, node: str) -> None:
        """End a node's daemon; its jobs' processes go on, and after ten seconds the controller holds it for down."""
        slurm_services.end(self.hosts[node], "slurmd", signal.SIGKILL)

    def start_slurmd(self, node: str) -> None:
        """Start it again."""
        slurm_services.start(self.hosts[node], "slurmd")

    def stop_controller(self) -> None:
        """End the controller as an administrator does: what it knows is written down."""
        slurm_services.end(self.login, "slurmctld", signal.SIGTERM)

    def kill_controller(self) -> None:
        """End it at once: it forgets what it heard in the last seconds, new jobs too."""
        slurm_services.end(self.login, "slurmctld", signal.SIGKILL)

    def start_controller(self) -> None:
        """Start it, with what it has written down, and wait until it answers."""
        slurm_services.start(self.login, "slurmctld")
        self.until(self.answers, "the controller answers")

    def stuck_controller(self) -> AbstractContextManager[None]:
        """The controller takes connections and never answers: commands hang, then say that they timed out."""
        return slurm_services.stuck(self.login, "slurmctld")

    def no_accounting(self) -> AbstractContextManager[None]:
        """No slurmdbd while the block runs: sacct fails, jobs go on."""
        return slurm_services.without(self.login, "slurmdbd")

    def restart_controller(self) -> None:
        """End the controller and start it."""
        self.stop_controller()
        self.start_controller()

    def restart(self) -> None:
        """Start all of Slurm's daemons anew, as for other nodes; jobs go on."""
        for node in self.nodes:
            self.kill_slurmd(node)
        self.restart_controller()
        for node in self.nodes:
            self.start_slurmd(node)
        self.until(lambda: self.nodes.keys() <= self.states().keys(), "all nodes are known")
        self.until(lambda: set(self.states().values()) <= TAKING, "all nodes take jobs")

    def answers(self) -> bool:
        """Whether the controller does."""
        return "is UP" in self.root("scontrol", "ping", check=False)

    @contextlib.contextmanager
    def settings(self, *lines: str, restart: bool = False) -> Iterator[None]:
        """Other lines at the end of everybody's slurm.conf while the block runs, such as "KillWait=1".

        Some are read by a controller that starts only, such as AccountingStorageEnforce: `restart`.
        """
        before = {host: host.path(CONF).read_text() for host in self.hosts.values()}
        for host, text in before.items():
            host.path(CONF).write_text(text + "".join(f"{line}\n" for line in lines))
        try:
            self._read_settings(restart)
            yield
        finally:
            for host, text in before.items():  # one that was rebooted meanwhile has its files elsewhere
                host.path(CONF).write_text(text)
            self._read_settings(restart)

    def _read_settings(self, restart: bool) -> None:
        if restart:
            self.restart_controller()
        self.root("scontrol", "reconfigure")

    @contextlib.contextmanager
    def reservation(self, name: str, user: str, node: str, minutes: int = 10) -> Iterator[None]:
        """A node is reserved for somebody while the block runs."""
        words = [f"ReservationName={name}", f"Users={user}", f"Nodes={node}", "StartTime=now", f"Duration={minutes}"]
        self.root("scontrol", "create", "reservation", *words[1:], *words[:1])
        try:
            yield
        finally:
            self.root("scontrol", "delete", *words[:1])

    @contextlib.contextmanager
    def small_disk(self, user: str, path: str, size: str = "1M", inodes: int = 0) -> Iterator[None]:
        """A disk of its own for a folder that all hosts share, as for somebody whose quota is small."""
        nodes = self.nodes.values()
        with faults.small_disk(self.login, user, path, size, inodes):
            share = [sys.executable, "-I", str(HERE / "share_mount.py"), self.place.mark, path]
            command(*share, str(self.login.pid), *(str(node.pid) for node in nodes))
            try:
                yield
            finally:
                for node in nodes:
                    node.run("root", ["umount", "--lazy", path])

    def log(self, host: str) -> str:
        """What Slurm's daemons wrote on a host."""
        return self._read(host, "*")

    def _read(self, host: str, daemon: str) -> str:
        found = sorted((self.hosts[host].folder / "var/log/slurm").glob(f"{daemon}.log"))
        return "".join(path.read_text(errors="replace") for path in found)


def fields(line: str) -> dict[str, str]:
    """The `Name=value` pairs of one of scontrol's lines; values may hold blanks."""
    found = list(FIELD.finditer(line))
    ends = [*(match.start() for match in found[1:]), len(line)]
    return {match[1]: line[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}
