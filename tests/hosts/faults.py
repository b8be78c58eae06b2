"""What can go wrong with a host, on demand. Most are context managers: the fault ends with the block."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from hosts.host import Host
from hosts.machine import background, command, until

FAKE_TIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def unplug(host: Host, *networks: str) -> None:
    """Pull the network cables, all or those named: packets vanish, nobody is told, connections stand still."""
    for network in networks or host.kind.networks:
        command("ip", "link", "set", host.place.link(host.kind, network), "down")


def plug(host: Host) -> None:
    """Put the network cable back."""
    for network in host.kind.networks:
        command("ip", "link", "set", host.place.link(host.kind, network), "up")


@contextlib.contextmanager
def cut(host: Host, *networks: str) -> Iterator[None]:
    """No network while the block runs, or not those named: "outside", "inside"."""
    unplug(host, *networks)
    try:
        yield
    finally:
        plug(host)


def cut_for(host: Host, seconds: float) -> None:
    """No network from now on for so long; does not wait, and the cable comes back whatever becomes of us."""
    unplug(host)
    background("hosts.plug", host.place, host.name, str(seconds), log=host.place.folder / "plug.log")


@contextlib.contextmanager
def sshd_options(host: Host, *lines: str) -> Iterator[None]:
    """Other settings for new SSH connections, such as "MaxSessions 1" or "MaxStartups 1"."""
    configuration = host.path("/etc/ssh/faults.conf")
    configuration.write_text("".join(line + "\n" for line in lines))
    host.reload_sshd()
    try:
        yield
    finally:
        configuration.write_text("")
        host.reload_sshd()


def kill_sshd(host: Host) -> None:
    """End the SSH server: no new connections until `host.start_sshd()`; those that stand go on."""
    pid = host.sshd()
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in host.processes(), "the SSH server is gone")


@contextlib.contextmanager
def no_sshd(host: Host) -> Iterator[None]:
    """No SSH server while the block runs."""
    kill_sshd(host)
    try:
        yield
    finally:
        host.start_sshd()


def kill_sessions(host: Host, user: str) -> int:
    """Kill the server's side of a user's SSH connections; how many processes that were. What they started goes on."""
    titles = (f"sshd: {user}@", f"sshd: {user} ")
    found = [pid for pid, argv in host.processes().items() if argv and argv[0].startswith(titles)]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


@contextlib.contextmanager
def small_disk(host: Host, user: str, path: str, size: str = "1M", inodes: int = 0) -> Iterator[None]:
    """A disk of its own for a folder, of this size and, if given, number of files. What was in it is hidden."""
    host.run(user, ["mkdir", "-p", path])
    uid = next(one.uid for one in host.kind.accounts if one.name == user)
    options = f"size={size},uid={uid},gid={uid},mode=0700" + (f",nr_inodes={inodes}" if inodes else "")
    with mounted(host, path, ["mount", "-t", "tmpfs", "-o", options, "none", path]):
        yield


@contextlib.contextmanager
def read_only(host: Host, path: str) -> Iterator[None]:
    """A folder that nobody can write to."""
    with mounted(host, path, ["mount", "--bind", path, path]):
        host.run("root", ["mount", "-o", "remount,bind,ro", path])
        yield


@contextlib.contextmanager
def mounted(host: Host, path: str, argv: list[str]) -> Iterator[None]:
    """Something mounted while the block runs."""
    host.run("root", argv)
    try:
        yield
    finally:
        host.run("root", ["umount", "--lazy", path])


@contextlib.contextmanager
def clock(host: Host, seconds: int) -> Iterator[None]:
    """A clock that is wrong by so much, for what new SSH sessions start and for `host.run`.

    The kernel has one real-time clock for all hosts, so this is a library that the environment of a session loads into
    its programs (libfaketime): also the file times that they see are shifted. Static programs, programs that are given
    an environment of their own, the SSH server, and processes that run already see the true time.
    """
    settings = {"LD_PRELOAD": FAKE_TIME, "FAKETIME": f"{seconds:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    environment = host.path("/etc/environment")
    before = environment.read_text()
    environment.write_text(before + "".join(f"{name}={value}\n" for name, value in settings.items()))
    try:
        yield
    finally:
        environment.write_text(before)


@contextlib.contextmanager
def other_host_key(host: Host) -> Iterator[None]:
    """Host keys that nobody knows, as after a new installation, or with somebody between."""
    kinds = ("ed25519", "ecdsa")
    for kind in kinds:
        host.path(f"/etc/ssh/other_{kind}").unlink(missing_ok=True)
        host.run("root", ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", f"/etc/ssh/other_{kind}"])
    with sshd_options(host, *(f"HostKey /etc/ssh/other_{kind}" for kind in kinds)):
        yield
