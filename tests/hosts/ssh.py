"""Files with which an SSH client finds and believes the hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hosts.files import write

if TYPE_CHECKING:
    from hosts.host import Host
    from hosts.lab import Lab
    from hosts.road import Road

COMMON = """Host *
  User alice
  IdentityFile {keys}/%r
  IdentitiesOnly yes
  UserKnownHostsFile {known_hosts}
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
"""


def host_key(host: Host) -> list[str]:
    """The host's public keys, each as `type key`."""
    found = sorted((host.folder / "etc/ssh").glob("lab_*.pub"))
    return [" ".join(one.read_text().split()[:2]) for one in found]


def known(host: Host, where: str) -> str:
    """Lines of a known_hosts file for a host that is reached at `where`."""
    return "".join(f"{where} {key}\n" for key in host_key(host))


def entry(host: Host, address: str, port: int = 22) -> str:
    """The host's part of an ssh_config."""
    jump = f"  ProxyJump {host.kind.jump}\n" if host.kind.jump else ""
    return f"Host {host.name}\n  HostName {address}\n  Port {port}\n{jump}"


def write_client_files(lab: Lab, road: Road | None = None) -> None:
    """Write ssh_config and known_hosts: for the lab, or for who takes a road instead of the straight way."""
    straight = [host for host in lab.hosts.values() if host.kind.sshd and (not road or host is not road.host)]
    names = "".join(known(host, f"{host.name},{host.address}") for host in straight)
    entries = "".join(entry(host, host.address) for host in straight)
    settings, known_hosts = lab.ssh_config, lab.known_hosts
    if road:
        settings, known_hosts = str(road.ssh_config), str(road.known_hosts)
        names += known(road.host, f"{road.host.name},[{road.address}]:{road.port}")
        entries += entry(road.host, road.address, road.port)
    common = COMMON.format(keys=lab.place.folder / "keys", known_hosts=known_hosts)
    write(Path(known_hosts), names, 0o600)
    write(Path(settings), entries + common, 0o600)
