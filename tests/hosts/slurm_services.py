"""The daemons of a Slurm cluster, started as a site's hosts start them, without systemd."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from hosts import cgroups
from hosts.host import ENTER, Host
from hosts.machine import LabError, until
from hosts.slurm_files import GPUS

GROUND = """set -e
install -d -o munge -g munge -m 0755 /run/munge
install -d -o munge -g munge -m 0700 /var/log/munge
install -d -o slurm -g slurm -m 0755 /run/slurm /var/log/slurm /var/spool/slurmctld
install -d -m 0755 /var/spool/slurmd
exec setpriv --reuid=munge --regid=munge --clear-groups munged --seed-file=/run/munge/munged.seed
"""
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
JOIN = 'for one in /sys/fs/cgroup/*/cgroup.procs; do [ ! -e "$one" ] || echo 0 > "$one"; done'
GPU_FILES = f"""install -d /run/gpus
for number in $(seq 0 {GPUS - 1}); do [ -e /run/gpus/fake$number ] || mknod -m 0666 /run/gpus/fake$number c 1 3; done
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
        start_slurmd(host)


def start_controller(host: Host) -> None:
    """Start slurmctld."""
    start(host, "slurmctld")


def start_slurmd(host: Host) -> None:
    """Start slurmd, in the host's own part of the machine's control groups."""
    start(host, "slurmd")


def start(host: Host, daemon: str) -> None:
    """Start a daemon that goes to the background by itself."""
    enter = [*ENTER, "-C"] if cgroups.hierarchies() else ENTER
    begin = ["sh", "-c", f"{JOIN}; exec {daemon}"]
    whole = ["nsenter", "-t", str(host.pid), *enter, "--wd=/", "--", "env", "-i", f"PATH={PATH}", *begin]
    with open(host.folder / "var/log/start.log", "ab") as log:
        code = subprocess.run(
            whole, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60, check=False
        ).returncode
    if code:
        raise LabError(
            f"{daemon} does not start on {host.name}: {(host.folder / 'var/log/start.log').read_text()[-1000:]}"
        )


def daemons(host: Host, name: str) -> list[int]:
    """The processes of a daemon, by this machine's process ids."""
    return [pid for pid, argv in host.processes().items() if argv and os.path.basename(argv[0]) == name]


def kill(host: Host, name: str) -> None:
    """End a daemon at once; what it started goes on."""
    for pid in daemons(host, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not daemons(host, name), f"{name} has ended on {host.name}")
