"""A lab: a few hosts in a network of their own. It comes up in seconds and goes without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hosts import cgroups, files, network, oar, registry, slurm_files, ssh
from hosts.host import Host
from hosts.layout import ALL_KINDS, EVERYBODY, HOME, KINDS, THIRD_NODE, Kind
from hosts.machine import LabError, arguments_of, background, lives, marked, started, turn, until
from hosts.oar import Oar
from hosts.place import CHECKOUT, LABS, PLAY, Place, present
from hosts.road import Road
from hosts.slurm import Slurm
from hosts.start import raise_host, start_host, write_neighbours

# Debian's users have none of them on their PATH. It is changed before a test begins: see tests/prepared.py.
os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*os.environ["PATH"].split(os.pathsep), "/usr/sbin", "/sbin"]))

SLURM_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "sshd", "ssh", "ssh-keygen", "mount", "chpasswd", "ldconfig")


class Lab:
    """A lab that is up. `Lab.up()` makes one, `Lab.find()` finds one, `down()` ends one."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.facts = json.loads((place.folder / "lab.json").read_text())
        kinds = [kind for kind in ALL_KINDS if kind.name in self.facts["hosts"]]
        self.hosts = {kind.name: Host(place, kind, self.facts["base"]) for kind in kinds}
        self._slurm = Slurm(place, self.hosts) if any(kind.slurm for kind in kinds) else None
        self._oar = Oar(place, self.hosts) if any(kind.oar for kind in kinds) else None

    @classmethod
    def find(cls, purpose: str = PLAY) -> Lab | None:
        """This checkout's lab for a purpose, if it is up and whole."""
        place = Place.of(purpose)
        return cls(place) if (place.folder / "up").exists() and alive(place) else None

    @classmethod
    def up(
        cls,
        purpose: str = PLAY,
        *,
        owner: int | None = None,
        kinds: Sequence[Kind] = KINDS,
        accounting: bool = False,
    ) -> Lab:
        """Make a lab, or find the one that is there.

        Args:
            purpose: labs of one checkout differ by it.
            owner: a process with whose end, however it comes, the lab goes.
            kinds: the hosts.
            accounting: whether a Slurm cluster among them keeps accounts (sacct).
        """
        check_machine(kinds)
        place = Place.of(purpose)
        with turn():
            sweep()
            return cls.find(purpose) or make(place, purpose, kinds, owner, accounting)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def slurm(self) -> Slurm:
        """The Slurm cluster that some of the hosts are."""
        if self._slurm is None:
            raise LabError("these hosts are no Slurm cluster: Lab.up(..., kinds=SLURM) makes one")
        return self._slurm

    @property
    def oar(self) -> Oar:
        """The OAR cluster that some of the hosts are."""
        if self._oar is None:
            raise LabError("these hosts are no OAR cluster: Lab.up(..., kinds=OAR) makes one")
        return self._oar

    @property
    def home(self) -> str:
        """This machine's address in the lab's outside network."""
        return f"{self.facts['base']}.{HOME}"

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

    def road(self, name: str, delay: float = 0.0) -> Road:
        """Another way to a host, `delay` seconds long each way, that can stall, break and count; see Road."""
        road = Road(self[name], self.home, delay)
        ssh.write_client_files(self, road)
        return road

    def reboot(self, name: str) -> None:
        """Pull a host's plug and start it again: its processes and what was in memory are gone."""
        with self.off(name):
            pass

    @contextlib.contextmanager
    def off(self, name: str) -> Iterator[None]:
        """Pull a host's plug, and start it again when the block ends."""
        host = self[name]
        host.kill()
        until(lambda: has_ended(self.place, [host.pid]), f"{name} is off")
        until(
            lambda: host.place.link(host.kind, host.kind.networks[0]) not in network.interfaces(self.place), "no cable"
        )
        try:
            yield
        finally:
            start_host(host)

    def add_node(self, kind: Kind = THIRD_NODE) -> Host:
        """Let the Slurm cluster grow by a node, as its administrator would: jobs go on, the daemons start anew."""
        if kind.name in self.hosts:
            return self[kind.name]
        host = self.hosts[kind.name] = Host(self.place, kind, self.facts["base"])
        self.facts["hosts"].append(kind.name)
        files.write(self.place.folder / "lab.json", json.dumps(self.facts), 0o600)
        slurm_files.write_nodes(self.place.folder / slurm_files.SITE, list(self.slurm.nodes), self.facts["accounting"])
        raise_host(self, host)
        for other in self.hosts.values():
            write_neighbours(self, other, other.path("/etc"))
        self.slurm.restart()
        return host

    def down(self) -> None:
        """End the lab: its processes, interfaces, files."""
        down(self.place)


def check_machine(kinds: Sequence[Kind]) -> None:
    """Say what is missing before anything is made."""
    if os.geteuid():
        raise LabError("hosts are made of namespaces, mounts and network cards: that takes root")
    wanted = (*TOOLS, *SLURM_TOOLS) if any(kind.slurm for kind in kinds) else TOOLS
    missing = [name for name in wanted if not shutil.which(name)]
    missing += oar.missing() if any(kind.oar for kind in kinds) else []
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; `scripts/setup --hosts` installs them on Debian")
    root, own = os.stat("/"), f"--mount=/proc/{os.getpid()}/ns/mnt"
    inside = subprocess.run(["nsenter", own, "stat", "-c", "%d:%i", "/"], capture_output=True, text=True, check=False)
    if inside.stdout.strip() != f"{root.st_dev}:{root.st_ino}":
        raise LabError("this is a chroot, which whoever enters a host would leave; enter it by pivot_root (`bwrap`)")


def make(place: Place, purpose: str, kinds: Sequence[Kind], owner: int | None, accounting: bool) -> Lab:
    """Make a lab, or nothing."""
    clear(place)
    try:
        lab = lay_ground(place, purpose, kinds, owner, accounting)
        served = [host.address for host in lab.hosts.values() if host.kind.registry]
        log = place.folder / "registry.log"
        background("hosts.registry", place, lab.home, str(registry.PORT), *served, log=log)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: raise_host(lab, host), lab.hosts.values()))
        ssh.write_client_files(lab)
        if any(kind.slurm for kind in kinds):
            lab.slurm.wait_until_ready()
        if any(kind.oar for kind in kinds):
            lab.oar.wait_until_ready()
        if owner is not None:
            background("hosts.watch", place, str(owner), log=place.folder / "watch.log")
    except BaseException:
        with contextlib.suppress(LabError):
            clear(place)
        raise
    (place.folder / "up").touch()
    return lab


def lay_ground(place: Place, purpose: str, kinds: Sequence[Kind], owner: int | None, accounting: bool) -> Lab:
    """Folder, networks, passwords and keys of a lab whose hosts are still to come."""
    place.folder.mkdir(parents=True, mode=0o700)
    LABS.chmod(0o700)
    base = network.free_range(place)
    network.lay_bridges(place, base)
    facts = {
        "checkout": str(CHECKOUT),
        "purpose": purpose,
        "base": base,
        "owner": owner,
        "owner_started": "" if owner is None else started(owner),
        "hosts": [kind.name for kind in kinds],
        "accounting": accounting,
        "passwords": {one.name: secrets.token_urlsafe(9) for one in EVERYBODY},
    }
    files.write(place.folder / "lab.json", json.dumps(facts), 0o600)
    (place.folder / "keys").mkdir(mode=0o700)
    for one in EVERYBODY:
        files.key(place.folder / "keys" / one.name, "ed25519", one.name)
    nodes = [kind.name for kind in kinds if kind.slurm == "node"]
    if any(kind.cluster for kind in kinds):
        files.homes(place.folder / slurm_files.HOMES, EVERYBODY)
    if nodes:
        slurm_files.write_site(place.folder / slurm_files.SITE, nodes, accounting)
    return Lab(place)


def alive(place: Place) -> bool:
    """Whether all hosts of a lab run."""
    try:
        facts = json.loads((place.folder / "lab.json").read_text())
        pids = [int((place.folder / name / "pid").read_text()) for name in facts["hosts"]]
    except FileNotFoundError:
        return False
    return all(place.mark in arguments_of(pid) for pid in pids)


def down(place: Place) -> None:
    """End a lab by what is on the system, whoever made it and however far that came."""
    with turn():
        clear(place)


def sweep() -> None:
    """End the labs whose owner has died together with who was to notice, and what is left of half-made ones."""
    for place in present():
        try:
            facts = json.loads((place.folder / "lab.json").read_text())
        except FileNotFoundError:
            facts = {"owner": 0, "owner_started": "never"}
        owner = facts.get("owner")
        if owner is not None and started(owner) != facts.get("owner_started", started(owner)):
            clear(place)


def clear(place: Place) -> None:
    """Leave nothing of a lab: processes, interfaces, files."""
    until(lambda: not kill_marked(place), "the lab's processes are gone")
    cgroups.remove(place)
    network.remove(place)
    if place.folder.exists():
        shutil.rmtree(place.folder)
    with contextlib.suppress(OSError):
        LABS.rmdir()


def has_ended(place: Place, processes: Sequence[int]) -> bool:
    """Whether processes that were killed have ended; helps them."""
    cgroups.thaw(place)
    return not any(map(lives, processes))


def kill_marked(place: Place) -> list[int]:
    """Kill the lab's processes, but not this one, and see them end; those that were there."""
    found = [pid for pid in marked(place) if pid != os.getpid()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: has_ended(place, found), "the lab's processes have ended")
    return found
