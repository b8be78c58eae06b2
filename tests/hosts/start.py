"""Making a host of a lab, and switching it on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hosts import cgroups, files, network, oar, registry, slurm_files
from hosts.host import Host
from hosts.machine import LabError
from hosts.place import CHECKOUT, LABS
from hosts.slurm_services import start_services

if TYPE_CHECKING:
    from hosts.lab import Lab

JOIN_AND_START = 'while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs"; shift; done; shift; exec "$@"'


def raise_host(lab: Lab, host: Host) -> None:
    """Make one host and start it."""
    files.folders(host.folder)
    if not host.kind.cluster:
        files.homes(home_folder(host), host.kind.accounts)
    write_etc(lab, host)
    spec = {
        "name": host.name,
        "registry": host.kind.registry,
        "pythons": files.pythons(),
        "home": str(home_folder(host)),
        "slurm": host.kind.slurm,
        "oar": host.kind.oar,
        "cgroups": list(cgroups.hierarchies(cgroups.OAR if host.kind.oar else cgroups.CONTROLLERS)),
        "hidden": [str(CHECKOUT), str(LABS)],
    }
    files.write(host.folder / "spec.json", json.dumps(spec), 0o600)
    start_host(host)
    if host.kind.sshd:
        passwords = "".join(f"{one.name}:{lab.password(one.name)}\n" for one in host.kind.accounts)
        host.run("root", ["chpasswd", "-c", "SHA512"], stdin=passwords)


def home_folder(host: Host) -> Path:
    """Where the homes are: those of a cluster's hosts are the same."""
    return host.place.folder / slurm_files.HOMES if host.kind.cluster else host.folder / "home"


def write_etc(lab: Lab, host: Host) -> None:
    """The host's own /etc, over the machine's."""
    kind, etc = host.kind, host.folder / "etc"
    files.accounts(etc, kind.accounts)
    if kind.sshd:
        files.log_in_rules(etc, kind)
        for one in kind.accounts:
            files.write(etc / "ssh/keys" / one.name, Path(lab.key(one.name) + ".pub").read_text())
    write_neighbours(lab, host, etc)
    files.tools(host.folder, files.pythons())
    files.registry_settings(etc, registry.environment(lab.home) if kind.registry else {})
    files.write(etc / "hostname", f"{kind.name}\n")
    files.write(etc / "resolv.conf", "")


def write_neighbours(lab: Lab, host: Host, etc: Path) -> None:
    """What the host knows of the others: their names, and what Slurm must know of them."""
    names = "".join(f"{host.address_of(other)} {other.name}\n" for other in lab.hosts.values())
    files.write(etc / "hosts", f"127.0.0.1 localhost\n{names}")
    if host.kind.slurm:
        slurm_files.write_slurm(etc, host.kind, host.place.folder / slurm_files.SITE, lab.facts["accounting"])
    if host.kind.oar:
        oar.write_etc(etc, next(other.name for other in lab.hosts.values() if other.kind.oar == "frontend"))


def start_host(host: Host) -> None:
    """Switch a host on."""
    boot(host)
    network.connect(host.place, host.base, host.kind, host.pid)
    if host.kind.sshd:
        host.start_sshd()
    start_services(host)
    oar.start_services(host)


def boot(host: Host) -> None:
    """Start the first process of a host in namespaces of its own, and wait for its word."""
    namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    parts: list[Path] = []
    if not host.kind.sshd:
        parts = cgroups.add(host.place, host.name, cgroups.OAR if host.kind.oar else cgroups.CONTROLLERS)
    if parts:
        namespaces.append("--cgroup")
    init = [sys.executable, "-I", str(files.HERE / "init.py"), host.place.mark, str(host.folder)]
    with open(host.folder / "console.log", "wb") as console:
        started = subprocess.Popen(
            ["sh", "-c", JOIN_AND_START, "sh", *map(str, parts), "--", "unshare", *namespaces, *init],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=console,
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    assert started.stdout
    with started.stdout as said:
        if said.readline() != b"ready\n":
            raise LabError(f"{host.name} does not start: {(host.folder / 'console.log').read_text()}")
