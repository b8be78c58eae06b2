"""Records what other versions print, as root: `PYTHONPATH=tests python tests/recorded/slurm/elsewhere.py FOLDER`.

FOLDER is a Debian of another release with slurmctld, slurmd and slurm-client in it, as debootstrap makes one. Two nodes
run on one machine there, in namespaces of their own: no memory limits, and no limit of a partition is enforced at
submission, as is Slurm's default. Where slurmdbd and mariadb-server are there, accounts are kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from record import Recorder, record, record_without_accounting

from hosts.machine import until
from hosts.slurm import Slurm

SOCKET, PID = "/run/mysqld/mysqld.sock", "--pid-file=/run/mysqld/mysqld.pid"
DAEMONS = {"controller": ["slurmctld", "-D"], "c1": ["slurmd", "-D", "-N", "c1"], "c2": ["slurmd", "-D", "-N", "c2"]}
DATABASE = {
    "database": ["mariadbd", "--user=mysql", "--skip-networking", "--skip-grant-tables", f"--socket={SOCKET}", PID],
    "accounts": ["slurmdbd", "-D"],
}
CONFIGURATION = """ClusterName=elsewhere
SlurmctldHost=localhost
AuthType=auth/none
CredType=cred/none
SlurmUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd-%n.log
MpiDefault=none
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdTimeout=10
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=10000,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=500
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
NodeName=DEFAULT Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 State=UNKNOWN
NodeName=c1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16818 CPUs=4 RealMemory=4000 Gres=gpu:fake:2
NodeName=c2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=16819 CPUs=4 RealMemory=4000 Gres=gpu:fake:2
PartitionName=DEFAULT Nodes=c1,c2 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=cpu Default=YES DefaultTime=10 MaxTime=60
PartitionName=short DefaultTime=1 MaxTime=2 MaxNodes=1
PartitionName=gpu DefaultTime=10 MaxTime=60
PartitionName=closed DefaultTime=10 MaxTime=60 State=DOWN
PartitionName=spare DefaultTime=10 MaxTime=60 PriorityTier=1 PreemptMode=CANCEL GraceTime=5
"""
FILES = {
    "etc/slurm/gres.conf": "Name=gpu Type=fake File=/opt/card[0-1]\n",
    "opt/card0": "",
    "opt/card1": "",
    "etc/hosts": "127.0.0.1 localhost\n",
}
# slurmctld finds no address to listen to where there is only the loopback; slurmd wants that folder to be there.
ACCOUNTS = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
"""
SLURMDBD = """AuthType=auth/none
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageLoc=accounts
PidFile=/run/slurmdbd.pid
LogFile=/var/log/slurmdbd.log
"""
ENTER = """set -e
ip link set lo up
ip link add one type veth peer name two
ip link set one up
ip link set two up
ip address add 10.9.9.1/24 dev one
hostname localhost
mount -t proc proc {root}/proc
mount --rbind /sys {root}/sys
mount -t tmpfs tmpfs {root}/sys/fs/cgroup
exec chroot {root} {words}
"""


@dataclass
class Elsewhere:
    """The machine in the folder: what the recorder takes for a host."""

    root: Path
    first: subprocess.Popen[bytes] = field(init=False)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @contextlib.contextmanager
    def up(self) -> Iterator[Elsewhere]:
        """Its first process, with whose end all of it ends, and the daemons."""
        self._write()
        inside = ENTER.format(root=self.root, words="sleep infinity")
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
        self.first = subprocess.Popen(["unshare", *namespaces, "sh", "-c", inside])
        try:
            until(self._rooted, "its first process is inside", 10)
            self.run("root", ["sh", "-c", "id alice >/dev/null 2>&1 || useradd --uid 2001 -m alice"])
            if self.accounting:
                self._keep_accounts()
            for name in DAEMONS:
                self.start(name)
            yield self
        finally:
            self.first.kill()
            self.first.wait()

    @property
    def accounting(self) -> bool:
        """Whether it has what keeps accounts."""
        return (self.root / "usr/sbin/mariadbd").exists() and (self.root / "usr/sbin/slurmdbd").exists()

    def _keep_accounts(self) -> None:
        (self.root / SOCKET.lstrip("/")).unlink(missing_ok=True)
        self.run("root", ["install", "-d", "-o", "mysql", "/run/mysqld"])
        self.start("database")
        until(lambda: self.run("root", ["test", "-S", SOCKET]).returncode == 0, "the database listens", 60)
        self.start("accounts")
        add = ["sacctmgr", "--immediate", "add", "cluster", "elsewhere"]
        until(lambda: "elsewhere" in self.run("root", add).stdout, "slurmdbd answers", 60)

    def _write(self) -> None:
        plugins = list((self.root / "usr/lib").rglob("cgroup_v1.so"))  # old versions know no other
        cgroups = "CgroupPlugin=disabled\n" if plugins else "CgroupAutomount=no\n"
        files = {**FILES, "etc/slurm/cgroup.conf": cgroups, "etc/slurm/slurmdbd.conf": SLURMDBD}
        files["etc/slurm/slurm.conf"] = CONFIGURATION + (ACCOUNTS if self.accounting else "")
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
        for folder in ("var/spool/slurmctld", "var/spool/slurmd-c1", "var/spool/slurmd-c2"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/slurm/slurmdbd.conf").chmod(0o600)

    def _rooted(self) -> bool:
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{self.pid}/root").readlink() == self.root
        return False

    @property
    def pid(self) -> int:
        """The first process inside."""
        return child(self.first.pid)

    def start(self, name: str) -> None:
        out = (self.root / "var/log" / f"{name}.out").open("ab")
        words = [*self._inside(), *{**DAEMONS, **DATABASE}[name]]
        socket = {**os.environ, "MYSQL_UNIX_PORT": SOCKET}  # each release has another one
        self.daemons[name] = subprocess.Popen(words, stdout=out, stderr=out, env=socket)

    def end(self, name: str) -> None:
        """End a daemon at once; what it has started goes on."""
        os.kill(child(self.daemons[name].pid), signal.SIGKILL)
        self.daemons[name].wait()

    def run(
        self,
        user: str,
        argv: Sequence[str],
        *,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, as hosts' own do."""
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env"]
        settings = [
            "env",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            *(f"{key}={value}" for key, value in (env or {}).items()),
        ]
        whole = [*self._inside(), *become, *settings, *argv]
        return subprocess.run(whole, input=stdin, capture_output=True, text=True, timeout=timeout, check=check)

    def _inside(self) -> list[str]:
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--root", "--wdns=/tmp"]
        return ["nsenter", "-t", str(self.pid), *spaces, "--"]


def child(pid: int) -> int:
    """The only child of a process: unshare and nsenter wait for one."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class SlurmElsewhere(Slurm):
    """The same questions as to a lab's Slurm; its daemons are started otherwise."""

    machine: Elsewhere

    @property
    def login(self) -> Elsewhere:  # type: ignore[override]
        return self.machine

    def states(self) -> dict[str, str]:
        plain = {node: state.rstrip("*~#!%$@^-+") for node, state in super().states().items()}
        return {node: "idle" if state == "plnd" else state for node, state in plain.items()}

    def kill_slurmd(self, node: str) -> None:
        self.machine.end(node)

    def start_slurmd(self, node: str) -> None:
        self.machine.start(node)

    def stop_controller(self) -> None:
        self.machine.end("controller")

    def start_controller(self) -> None:
        self.machine.start("controller")


def main() -> None:
    os.chdir("/")
    with Elsewhere(Path(sys.argv[1]).resolve()).up() as machine:
        slurm = SlurmElsewhere(None, {})  # type: ignore[arg-type]
        object.__setattr__(slurm, "machine", machine)
        until(lambda: set(slurm.states().values()) == {"idle"}, "its nodes are idle", 60)
        recorder = Recorder(machine, slurm)  # type: ignore[arg-type]
        record(recorder) if machine.accounting else record_without_accounting(recorder)


if __name__ == "__main__":
    main()
