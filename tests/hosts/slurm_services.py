"""The daemons of a Slurm cluster, started as a site's hosts start them, without systemd."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

from hosts import cgroups
from hosts.host import ENTER, Host
from hosts.machine import LabError, until
from hosts.slurm_files import CLUSTER, GPUS

GROUND = """set -e
install -d -o munge -g munge -m 0755 /run/munge
install -d -o munge -g munge -m 0700 /var/log/munge
install -d -o slurm -g slurm -m 0755 /run/slurm /var/log/slurm /var/spool/slurmctld
install -d -m 0755 /var/spool/slurmd
exec setpriv --reuid=munge --regid=munge --clear-groups munged --seed-file=/run/munge/munged.seed
"""
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""What is installed with Debian's packages."""
JOIN = 'for one in /sys/fs/cgroup/*/cgroup.procs; do [ ! -e "$one" ] || echo 0 > "$one"; done'
"""Enter the node's own part of the machine's control groups."""
GPU_FILES = f"""install -d /run/gpus
for number in $(seq 0 {GPUS - 1}); do [ -e /run/gpus/fake$number ] || mknod -m 0666 /run/gpus/fake$number c 1 3; done
"""


DATABASE = """set -e
folder=/var/spool/mysql
install -d -o mysql -g mysql -m 0700 $folder
install -d -o mysql -g mysql -m 0755 /run/mysqld
small="--no-defaults --datadir=$folder --innodb-log-file-size=16M"
[ -d $folder/mysql ] || mariadb-install-db $small --user=mysql --skip-test-db
printf '%s\\n' "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;" \\
    "GRANT ALL ON slurm_accounting.* TO slurm@localhost;" > /run/mysqld/init.sql
setsid mariadbd $small --user=mysql --socket=/run/mysqld/mysqld.sock --skip-networking \\
    --init-file=/run/mysqld/init.sql --innodb-buffer-pool-size=64M \\
    --innodb-flush-log-at-trx-commit=0 --performance-schema=OFF --loose-innodb-snapshot-isolation=OFF < /dev/null &
"""
"""MariaDB of 11.6 and later would refuse what slurmdbd does while others write, by its innodb_snapshot_isolation."""
ACCOUNTS = """add cluster {cluster}
add qos long priority=1
add account science
add user {users} account=science qos=normal,long defaultqos=normal
"""


def start_services(host: Host) -> None:
    """Start what the host has to do with Slurm: after it was switched on."""
    if not host.kind.slurm:
        return
    host.run("root", ["sh", "-c", GROUND])
    if host.kind.slurm == "controller":
        start_controller(host)
    else:
        host.run("root", ["sh", "-c", GPU_FILES])
        start(host, "slurmd")


def start_controller(host: Host) -> None:
    """Start slurmctld, and first what it keeps its accounts with, if it does."""
    if host.path("/etc/slurm/slurmdbd.conf").exists():
        start_accounting(host)
    start(host, "slurmctld")


def start_accounting(host: Host) -> None:
    """Start the database and slurmdbd, and open an account for everybody."""
    inside(host, DATABASE, "the database")
    until(host.path("/run/mysqld/mysqld.sock").exists, "the database of Slurm's accounts listens")
    start(host, "slurmdbd")
    users = ",".join(one.name for one in host.kind.accounts)
    lines = ACCOUNTS.format(cluster=CLUSTER, users=users)
    until_it_answers(host)
    sacctmgr(host, lines)


def until_it_answers(host: Host) -> None:
    """Wait for slurmdbd; where it has ended, its log says why."""

    def answers() -> bool:
        return sacctmgr(host, "list cluster --noheader").returncode == 0

    until(lambda: answers() or not daemons(host, "slurmdbd"), "slurmdbd answers")
    if not answers():
        log = host.path("/var/log/slurm/slurmdbd.log").read_text(errors="replace")
        raise LabError("slurmdbd has ended; its log's last lines:\n" + "\n".join(log.splitlines()[-5:]))


def sacctmgr(host: Host, lines: str) -> subprocess.CompletedProcess[str]:
    """Give orders about the accounts, one a line."""
    return host.run("root", ["sacctmgr", "--immediate"], stdin=lines, check=False)


def start(host: Host, daemon: str) -> None:
    """Start a daemon that goes to the background by itself."""
    inside(host, f"{JOIN if host.kind.slurm == 'node' else ''}\nexec {daemon}", daemon)


def inside(host: Host, script: str, what: str) -> None:
    """Run a shell script on the host that leaves a daemon behind."""
    enter = [*ENTER, "-C"] if cgroups.hierarchies() else ENTER
    whole = ["nsenter", "-t", str(host.pid), *enter, "--wd=/", "--", "env", "-i", f"PATH={PATH}", "sh", "-c", script]
    path = host.folder / "var/log/start.log"
    with open(path, "ab") as log:
        done = subprocess.run(whole, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=180, check=False)
    if done.returncode:
        raise LabError(f"{what} does not start on {host.name}: {path.read_text(errors='replace')[-1000:]}")


def daemons(host: Host, name: str) -> list[int]:
    """The processes of a daemon, by this machine's process ids."""
    return [pid for pid, argv in host.processes().items() if argv and os.path.basename(argv[0]) == name]


def end(host: Host, name: str, number: signal.Signals) -> None:
    """End a daemon by a signal; what it started goes on."""
    signal_all(host, name, number)
    until(lambda: not daemons(host, name), f"{name} has ended on {host.name}")


@contextlib.contextmanager
def without(host: Host, name: str) -> Iterator[None]:
    """A daemon is not there while the block runs."""
    end(host, name, signal.SIGTERM)
    try:
        yield
    finally:
        start(host, name)


@contextlib.contextmanager
def stuck(host: Host, name: str) -> Iterator[None]:
    """A daemon stands still while the block runs: it takes connections, and never answers."""
    signal_all(host, name, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(host, name, signal.SIGCONT)


def signal_all(host: Host, name: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a daemon."""
    for pid in daemons(host, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
