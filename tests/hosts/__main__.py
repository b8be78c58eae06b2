"""The hosts for a person to play with: `make hosts`, or `PYTHONPATH=tests python -m hosts VERB`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from hosts import faults, slurm_services
from hosts.host import Host
from hosts.lab import Lab, down
from hosts.layout import KINDS, OAR, SLURM
from hosts.machine import LabError
from hosts.place import PLAY, Place

LOG_IN = """
  ssh -F {config} desi         as alice, with a key
  ssh -F {config} bob@desi     password {bob}
  ssh -F {config} carol@desi   password {carol}, then a one-time code
  ssh -F {config} dave@desi    with a key, then a one-time code
  ssh -F {config} inner        behind the bastion

Save one as a cluster, then call functions with cluster="desi":
  .venv/bin/srf init desi --host {desi} --user alice --key-file {key} --known-hosts {known_hosts}

A fresh one-time code      make hosts-code WHO=carol
Something goes wrong       PYTHONPATH=tests .venv/bin/python -m hosts fault desi cut --seconds 10   (others: --help)
End them                   make hosts-down
"""
SLURM_LOG_IN = """
  ssh -F {config} login sinfo      as alice, with a key

Save it as a cluster, then call functions with cluster="pretend":
  .venv/bin/srf init pretend --slurm --host {login} --user alice --key-file {key} --known-hosts {known_hosts}

Something goes wrong       PYTHONPATH=tests .venv/bin/python -m hosts --purpose {purpose} fault c1 cut --seconds 10
A third node               PYTHONPATH=tests .venv/bin/python -m hosts --purpose {purpose} grow
End them                   PYTHONPATH=tests .venv/bin/python -m hosts --purpose {purpose} down
"""
OAR_LOG_IN = """
  ssh -F {config} frontal oarnodes -s      as alice, with a key

Save it as a cluster, then call functions with cluster="pretend-oar":
  .venv/bin/srf init pretend-oar --oar --host {frontal} --user alice --key-file {key} --known-hosts {known_hosts}

Something goes wrong       PYTHONPATH=tests .venv/bin/python -m hosts --purpose {purpose} fault o1 cut --seconds 10
End them                   PYTHONPATH=tests .venv/bin/python -m hosts --purpose {purpose} down
"""
FAULTS: dict[str, Callable[[Host], AbstractContextManager[object]]] = {
    "cut": faults.cut,
    "one-session": lambda host: faults.sshd_options(host, "MaxSessions 1"),
    "one-startup": lambda host: faults.sshd_options(host, "MaxStartups 1"),
    "no-sshd": faults.no_sshd,
    "small-disk": lambda host: faults.small_disk(host, "alice", "/home/alice/.slurm-ray-flow"),
    "read-only-home": lambda host: faults.read_only(host, "/home"),
    "clock-an-hour-fast": lambda host: faults.clock(host, 3600),
    "other-host-key": faults.other_host_key,
    "no-slurmd": lambda host: slurm_services.without(host, "slurmd"),
    "no-controller": lambda host: slurm_services.without(host, "slurmctld"),
    "stuck-controller": lambda host: slurm_services.stuck(host, "slurmctld"),
}


def show(lab: Lab) -> None:
    """Say how to log in."""
    for host in lab.hosts.values():
        seen = f"{len(host.processes())} processes, {host.connections()} connections so far"
        print(f"{host.name:8} {host.address:15} {seen}")
    words = {"config": lab.ssh_config, "known_hosts": lab.known_hosts, "key": lab.key("alice")}
    passwords = {name: lab.password(name) for name in ("bob", "carol")}
    if "desi" in lab.hosts:
        print(LOG_IN.format(desi=lab["desi"].address, **words, **passwords), end="")
    if "login" in lab.hosts:
        print(SLURM_LOG_IN.format(login=lab["login"].address, purpose=lab.facts["purpose"], **words), end="")
    if "frontal" in lab.hosts:
        print(OAR_LOG_IN.format(frontal=lab["frontal"].address, purpose=lab.facts["purpose"], **words), end="")


def found(given: argparse.Namespace) -> Lab:
    """The lab that must be up."""
    lab = Lab.find(given.purpose)
    if lab is None:
        raise LabError("no hosts are up: `make hosts`")
    return lab


def host_of(given: argparse.Namespace) -> Host:
    """The host that the command line names."""
    lab = found(given)
    if given.host not in lab.hosts:
        raise LabError(f"no host is named {given.host!r}; there are {', '.join(lab.hosts)}")
    return lab[given.host]


def up(given: argparse.Namespace) -> None:
    """Bring the hosts up, or say that they are."""
    there = Lab.find(given.purpose)
    kinds = SLURM if given.slurm else OAR if given.oar else KINDS
    if there and (kinds[0].name in there.hosts, there.facts["accounting"]) != (True, given.accounting):
        raise LabError("hosts of another kind are up under this name: end them first, or choose another --purpose")
    if there:
        print("the hosts are up already")
    show(there or Lab.up(given.purpose, kinds=kinds, accounting=given.accounting))


def login(given: argparse.Namespace) -> None:
    """Log in by OpenSSH."""
    config, host = found(given).ssh_config, host_of(given)
    os.execvp("ssh", ["ssh", "-F", config, f"{given.user}@{host.name}"])


def fault(given: argparse.Namespace) -> None:
    """Break something for some seconds, or until Ctrl-C."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with FAULTS[given.fault](host_of(given)):
        print(
            f"{given.host}: {given.fault}, " + (f"for {given.seconds:g} s" if given.seconds else "until Ctrl-C"),
            flush=True,
        )
        over.wait(given.seconds)
    print(f"{given.host}: {given.fault} is over")


def road(given: argparse.Namespace) -> None:
    """Lay a slow road to a host until Ctrl-C, then say what passed over it."""
    lab = found(given)
    with lab.road(host_of(given).name, given.delay / 1000) as long:
        print(f"ssh -F {long.ssh_config} {given.host}   (until Ctrl-C)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        print(long.counts())


def parser() -> argparse.ArgumentParser:
    """The verbs."""
    whole = argparse.ArgumentParser(prog="hosts", description=__doc__)
    whole.add_argument("--purpose", default=PLAY, help="which of this checkout's labs")
    verbs = whole.add_subparsers(required=True, dest="verb")

    def verb(do: Callable[[argparse.Namespace], None], name: str, says: str, *words: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=says)
        one.set_defaults(do=do)
        for word in words:
            one.add_argument(word)
        return one

    comes = verb(up, "up", "bring them up, or find them")
    comes.add_argument("--slurm", action="store_true", help="a Slurm cluster: login, c1, c2")
    comes.add_argument("--oar", action="store_true", help="an OAR cluster: frontal, o1, o2")
    comes.add_argument("--accounting", action="store_true", help="one that keeps accounts: sacct works")
    verb(lambda given: down(Place.of(given.purpose)), "down", "end them")
    verb(lambda given: show(found(given)), "status", "what is up, and how to log in")
    verb(lambda given: print(found(given).add_node().name, "takes jobs"), "grow", "a Slurm cluster gets a third node")
    verb(
        lambda given: found(given).reboot(host_of(given).name),
        "reboot",
        "pull a host's plug, and start it again",
        "host",
    )
    verb(lambda given: print(host_of(given).new_code(given.user)), "code", "a one-time code", "host", "user")
    verb(login, "login", "log in", "host").add_argument("user", nargs="?", default="alice")
    verb(road, "road", "a slow road to a host", "host").add_argument(
        "--delay", type=float, default=20.0, help="ms each way"
    )
    breaks = verb(fault, "fault", "break something for a while", "host")
    breaks.add_argument("fault", choices=list(FAULTS))
    breaks.add_argument("--seconds", type=float)
    return whole


def main() -> int:
    """Read the command line and do it."""
    given = parser().parse_args()
    try:
        given.do(given)
    except LabError as problem:
        print(f"hosts: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
