"""A lab: a few hosts in a network of their own. It comes up in seconds and goes without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from hosts import files, network, ssh
from hosts.host import Host
from hosts.layout import EVERYBODY, KINDS, Kind
from hosts.machine import LabError, arguments_of, background, marked, turn, until
from hosts.place import CHECKOUT, LABS, PLAY, Place

TOOLS = ("ip", "unshare", "nsenter", "setpriv", "sshd", "ssh", "ssh-keygen", "mount", "chpasswd", "ldconfig")


class Lab:
    """A lab that is up. `Lab.up()` makes one, `Lab.find()` finds one, `down()` ends one."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.facts = json.loads((place.folder / "lab.json").read_text())
        kinds = [kind for kind in KINDS if kind.name in self.facts["hosts"]]
        self.hosts = {kind.name: Host(place, kind, self.facts["base"]) for kind in kinds}

    @classmethod
    def find(cls, purpose: str = PLAY) -> Lab | None:
        """This checkout's lab for a purpose, if it is up and whole."""
        place = Place.of(purpose)
        return cls(place) if (place.folder / "up").exists() and alive(place) else None

    @classmethod
    def up(cls, purpose: str = PLAY, *, owner: int | None = None, kinds: Sequence[Kind] = KINDS) -> Lab:
        """Make a lab, or find the one that is there.

        Args:
            purpose: labs of one checkout differ by it.
            owner: a process with whose end, however it comes, the lab goes.
            kinds: the hosts.
        """
        check_machine()
        if found := cls.find(purpose):
            return found
        place = Place.of(purpose)
        down(place)
        try:
            lab = make(place, purpose, kinds)
            if owner is not None:
                background("hosts.watch", place, str(owner), log=place.folder / "watch.log")
        except BaseException:
            with contextlib.suppress(LabError):
                down(place)
            raise
        (place.folder / "up").touch()
        return lab

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def ssh_config(self) -> str:
        """The path of an ssh_config that knows the hosts: `ssh -F PATH desi`."""
        return str(self.place.folder / "ssh_config")

    @property
    def known_hosts(self) -> str:
        """The path of a known_hosts file with the hosts' keys."""
        return str(self.place.folder / "known_hosts")

    def key(self, user: str) -> str:
        """The path of a user's private key."""
        return str(self.place.folder / "keys" / user)

    def password(self, user: str) -> str:
        """A user's password on all hosts; another one in each lab."""
        return str(self.facts["passwords"][user])

    def down(self) -> None:
        """End the lab: its processes, interfaces, files."""
        down(self.place)


def check_machine() -> None:
    """Say what is missing before anything is made."""
    if os.geteuid():
        raise LabError("hosts are made of namespaces, mounts and network cards: that takes root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [name for name in TOOLS if not shutil.which(name)]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; `scripts/setup --hosts` installs them on Debian")


def make(place: Place, purpose: str, kinds: Sequence[Kind]) -> Lab:
    """Make all of a lab, its hosts side by side."""
    with turn():
        place.folder.mkdir(parents=True, mode=0o700)
        LABS.chmod(0o700)
        base = network.free_range(place)
        network.lay_bridges(place, base)
    facts = {
        "checkout": str(CHECKOUT),
        "purpose": purpose,
        "base": base,
        "hosts": [kind.name for kind in kinds],
        "passwords": {one.name: secrets.token_urlsafe(9) for one in EVERYBODY},
    }
    files.write(place.folder / "lab.json", json.dumps(facts), 0o600)
    (place.folder / "keys").mkdir(mode=0o700)
    keys = {one.name: files.key(place.folder / "keys" / one.name, "ed25519", one.name) for one in EVERYBODY}
    lab = Lab(place)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: raise_host(lab, host, keys), lab.hosts.values()))
    ssh.write_client_files(lab)
    return lab


def raise_host(lab: Lab, host: Host, keys: dict[str, str]) -> None:
    """Make one host and start its SSH server."""
    kind, etc, found = host.kind, host.folder / "etc", files.pythons()
    files.homes(host.folder, kind.accounts)
    files.accounts(etc, kind.accounts)
    files.log_in_rules(etc, kind)
    files.tools(host.folder, found)
    for one in kind.accounts:
        files.write(etc / "ssh/keys" / one.name, keys[one.name])
    files.write(etc / "hostname", f"{kind.name}\n")
    files.write(etc / "resolv.conf", "")
    names = "".join(f"{other.address} {other.name}\n" for other in lab.hosts.values())
    files.write(etc / "hosts", f"127.0.0.1 localhost\n{names}")
    spec = {"name": kind.name, "registry": kind.registry, "pythons": found, "hidden": [str(CHECKOUT), str(LABS)]}
    files.write(host.folder / "spec.json", json.dumps(spec), 0o600)
    boot(host)
    network.connect(lab.place, host.base, kind, host.pid)
    passwords = "".join(f"{one.name}:{lab.password(one.name)}\n" for one in kind.accounts)
    host.run("root", ["chpasswd", "-c", "SHA512"], stdin=passwords)
    host.start_sshd()


def boot(host: Host) -> None:
    """Start the first process of a host in namespaces of its own, and wait for its word."""
    namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
    init = [sys.executable, "-I", str(files.HERE / "init.py"), host.place.mark, str(host.folder)]
    with open(host.folder / "console.log", "wb") as console:
        started = subprocess.Popen(
            ["unshare", *namespaces, *init],
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


def alive(place: Place) -> bool:
    """Whether all hosts of a lab run."""
    facts = json.loads((place.folder / "lab.json").read_text())
    pids = [int((place.folder / name / "pid").read_text()) for name in facts["hosts"]]
    return all(place.mark in arguments_of(pid) for pid in pids)


def down(place: Place) -> None:
    """End a lab by what is on the system, whoever made it and however far that came."""
    for pid in marked(place):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    until(lambda: set(marked(place)) <= {os.getpid()}, "the lab's processes are gone")
    network.remove(place)
    with turn():
        if place.folder.exists():
            shutil.rmtree(place.folder)
        with contextlib.suppress(OSError):
            LABS.rmdir()
