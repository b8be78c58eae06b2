"""A lab's OAR cluster: its daemons without systemd, and what its administrator does with it.

OAR's configuration and its state have fixed places (/etc/oar, /var/lib/oar), so each host has its own copies there.
On a node OAR's script replaces /dev/cpuset and names its control groups /oar/USER_JOB: each node has a /dev of its own
and a part of the machine's control groups as if it were the whole.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts import cgroups
from hosts.files import write
from hosts.host import Host
from hosts.machine import LabError, until
from hosts.place import Place
from hosts.slurm_services import daemons, end, inside, stuck

CORES = 4
"""What each node claims to have. The numbers of CPUs wrap at those that the machine has."""
PORT = 5439
SLOWEST, PAUSE = 180.0, 0.2
TOOLS = ("oarsub", "oar-database", "Almighty", "oarnodesetting")
PACKAGED = Path("/usr/share/oar/oar-common/oar.conf")
SETTINGS = {
    "DB_TYPE": "Pg",
    "DB_HOSTNAME": "127.0.0.1",
    "DB_PORT": str(PORT),
    "DB_BASE_NAME": "oar",
    "DB_BASE_LOGIN": "oar",
    "DB_BASE_PASSWD": "oar",
    "DB_BASE_LOGIN_RO": "oar_ro",
    "DB_BASE_PASSWD_RO": "oar_ro",
    "LOG_LEVEL": "3",
    "LOG_FILE": "/var/log/oar.log",
    "DETACH_JOB_FROM_SERVER": "1",
    "SCHEDULER_MIN_TIME_BETWEEN_2_CALLS": "0",
    "SCHEDULER_JOB_SECURITY_TIME": "1",
    "SCHEDULER_GANTT_HOLE_MINIMUM_TIME": "1",
    "FINAUD_FREQUENCY": "10",
    "JOBDEL_WALLTIME": "30",
    "OAR_SSH_CONNECTION_TIMEOUT": "60",
    "PINGCHECKER_SENTINELLE_SCRIPT_COMMAND": "/usr/lib/oar/sentinelle.pl -t 30 -w 20",
    "USERS_ALLOWED_HOLD_RESUME": "yes",
}
"""Keys of oar.conf that differ from Debian's. With a longer time between two calls of the scheduler each job would wait
for ten seconds more."""
GROUND = """set -e
touch /var/log/oar.log
chown oar:oar /var/log/oar.log
"""
SSHD = "mkdir -p /run/sshd; exec /usr/sbin/sshd -E /var/log/oar-sshd.log -f /etc/oar/sshd_config -o PidFile=none"
JOIN = 'for one in /sys/fs/cgroup/*/tasks; do echo 0 > "$one"; done'
DATABASE = """set -e
folder=/var/spool/postgresql
install -d -o postgres -g postgres -m 0700 $folder
become="setpriv --reuid=postgres --regid=postgres --clear-groups"
if [ ! -s $folder/PG_VERSION ]; then
    $become {programs}/initdb --pgdata $folder --auth trust --encoding UTF8 --locale C --no-sync > /var/log/initdb.log
    cat >> $folder/postgresql.conf <<SETTINGS
port={port}
listen_addresses='127.0.0.1'
unix_socket_directories='$folder'
fsync=off
synchronous_commit=off
full_page_writes=off
shared_buffers=32MB
SETTINGS
fi
rm -f $folder/postmaster.pid
$become {programs}/pg_ctl --pgdata $folder --log $folder/server.log --wait start > /dev/null
oar-database --check > /dev/null 2>&1 || oar-database --create --db-admin-user=postgres --db-admin-pass=x \\
    --db-host=127.0.0.1 --db-port={port} > /var/log/oar-database.log
"""
ENDED = {"Terminated", "Error"}


def programs() -> Path:
    """Where Debian's PostgreSQL has its programs."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))


def configuration(frontend: str) -> str:
    """The text of oar.conf: Debian's, with other values."""
    names = {**SETTINGS, "SERVER_HOSTNAME": frontend}
    if not cgroups.hierarchies(cgroups.OAR):
        names["OARSH_BYPASS_WHOLE_SECURITY"] = "1"
    without = {
        *names,
        *(() if cgroups.hierarchies(cgroups.OAR) else ("JOB_RESOURCE_MANAGER_PROPERTY_DB_FIELD", "CPUSET_PATH")),
    }
    kept = [line for line in PACKAGED.read_text().splitlines() if line.lstrip("#").partition("=")[0] not in without]
    return "\n".join([*kept, *(f'{name}="{value}"' for name, value in names.items()), ""])


def write_etc(etc: Path, frontend: str) -> None:
    """The host's own configuration, which only OAR may read: it has the database's password."""
    write(etc / "oar/oar.conf", configuration(frontend), 0o600)
    shutil.chown(etc / "oar/oar.conf", "oar", "oar")


def start_services(host: Host) -> None:
    """Start what the host has to do with OAR: after it was switched on."""
    if not host.kind.oar:
        return
    inside(host, GROUND, "OAR")
    inside(host, f"{JOIN if host.kind.oar == 'node' else ''}\n{SSHD}", "OAR's sshd")
    if host.kind.oar == "frontend":
        inside(host, DATABASE.format(programs=programs(), port=PORT), "OAR's database")
        start_server(host)


def start_server(host: Host) -> None:
    """Start OAR's server, and wait until it takes commands."""
    inside(host, "setsid Almighty < /dev/null > /var/log/almighty.log 2>&1 &", "Almighty")
    listens = ["sh", "-c", "ss -tln | grep -q ':6666 '"]
    until(lambda: host.run("root", listens, check=False).returncode == 0, "OAR's server listens", SLOWEST, PAUSE)


@dataclass(frozen=True)
class Oar:
    """The cluster: `frontal` runs the server and has the users' commands, the others are its nodes."""

    place: Place
    hosts: Mapping[str, Host]

    @property
    def frontend(self) -> Host:
        """The host with the server."""
        return next(host for host in self.hosts.values() if host.kind.oar == "frontend")

    @property
    def nodes(self) -> dict[str, Host]:
        """The compute nodes."""
        return {name: host for name, host in self.hosts.items() if host.kind.oar == "node"}

    def root(self, *argv: str, check: bool = True, timeout: float = 60.0) -> str:
        """Run a command of OAR's as root on the frontend; what it printed."""
        return self.frontend.run("root", argv, check=check, timeout=timeout).stdout

    def wait_until_ready(self) -> None:
        """Make the nodes' resources known where they are not yet, and wait until all take jobs."""
        if not self.root("oarnodes", "-l", check=False).strip():
            self._add_resources()
        else:
            for name in self.nodes:
                self.revive(name)
        until(lambda: set(self.states().values()) == {"Alive"}, "OAR's nodes are alive", SLOWEST, PAUSE)

    def _add_resources(self) -> None:
        lines = ["set -e", "oarproperty -a host -c", "oarproperty -a cpu", "oarproperty -a core"]
        cpus = [
            int(line.split(":")[1])
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("processor")
        ]
        for place, name in enumerate(self.nodes):
            for core in range(CORES):
                number = place * CORES + core + 1
                lines.append(
                    f"oarnodesetting -a -h {name} -p host={name} -p cpu={place + 1} -p core={number}"
                    f" -p cpuset={cpus[core % len(cpus)]}"
                )
        self.root("sh", "-c", "\n".join(lines), timeout=SLOWEST)

    def states(self) -> dict[str, str]:
        """Each node's state; the one that is not Alive counts. Empty when the server does not answer."""
        said = self.root("oarnodes", "-J", check=False)
        found: dict[str, str] = {}
        for resource in (json.loads(said) if said.strip() else {}).values():
            name, state = resource["network_address"], resource["state"]
            found[name] = state if found.get(name, "Alive") == "Alive" else found[name]
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that OAR knows, ended ones too, by oarstat's names."""
        said = self.root("oarstat", "-f", "-J", "--sql", "job_id > 0")
        return list(json.loads(said).values()) if said.strip() else []

    def job(self, number: str | int) -> dict[str, Any]:
        """One job, by its id."""
        return next((job for job in self.jobs() if job["Job_Id"] == int(number)), {})

    def state(self, number: str | int) -> str:
        """A job's state, as Running; empty when OAR does not know it."""
        return str(self.job(number).get("state", ""))

    def until_state(self, job: str | int, state: str) -> None:
        """Wait until a job is in this state."""
        until(lambda: self.state(job) == state, f"job {job} is {state}", SLOWEST, PAUSE)

    def queue_empty(self) -> bool:
        """Whether no job waits, runs or ends."""
        return all(job["state"] in ENDED for job in self.jobs())

    def submit(self, user: str, command: str, *options: str) -> str:
        """Run oarsub on the frontend, without SSH; the job's id."""
        said = self.frontend.run(user, ["oarsub", *options, command]).stdout
        return next(line.partition("=")[2] for line in said.splitlines() if line.startswith("OAR_JOB_ID="))

    def oardel(self, *jobs: str | int) -> None:
        """End jobs, as an administrator."""
        if jobs:
            self.root("oardel", *map(str, jobs), check=False)

    def oardel_all(self) -> None:
        """End all jobs there are, and wait until none is left."""
        self.oardel(*(job["Job_Id"] for job in self.jobs() if job["state"] not in ENDED))
        until(self.queue_empty, "the queue is empty", SLOWEST, PAUSE)

    def revive(self, node: str) -> None:
        """Let a node take jobs again: one that OAR suspects does not come back by itself."""
        self.root("oarnodesetting", "-s", "Alive", "-h", node)

    def kill_server(self) -> None:
        """End OAR's server at once; jobs go on."""
        end(self.frontend, "Almighty", signal.SIGKILL)

    def start_server(self) -> None:
        """Start it again."""
        start_server(self.frontend)

    @contextlib.contextmanager
    def without_server(self) -> Iterator[None]:
        """No server while the block runs: oarsub says that the job is killed, and keeps it."""
        self.kill_server()
        try:
            yield
        finally:
            self.start_server()

    def stuck_database(self) -> contextlib.AbstractContextManager[None]:
        """The database takes connections and never answers: each command hangs."""
        return stuck(self.frontend, "postgres")

    def processes(self, node: str, user: str) -> list[list[str]]:
        """What a user's jobs run on a node: the arguments of each process."""
        uid = str(next(one.uid for one in self.frontend.kind.accounts if one.name == user))
        host = self.nodes[node]
        return [argv for pid, argv in host.processes().items() if _owner(pid) == uid]

    def log(self) -> str:
        """What OAR's server wrote."""
        return (self.frontend.folder / "var/log/oar.log").read_text(errors="replace")


def _owner(pid: int) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                return line.split()[1]
    return ""


def missing() -> list[str]:
    """The programs that are not installed here; Debian 13 may have no OAR."""
    return [name for name in TOOLS if shutil.which(name) is None]


__all__ = ["CORES", "LabError", "Oar", "daemons", "missing", "start_services", "write_etc"]
