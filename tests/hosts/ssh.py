"""Files with which an SSH client finds and believes the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hosts.files import write

if TYPE_CHECKING:
    from hosts.host import Host
    from hosts.lab import Lab

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


def entry(host: Host) -> str:
    """The host's part of the ssh_config."""
    jump = f"  ProxyJump {host.kind.jump}\n" if host.kind.jump else ""
    return f"Host {host.name}\n  HostName {host.address}\n{jump}"


def write_client_files(lab: Lab) -> None:
    """Write ssh_config and known_hosts."""
    hosts = lab.hosts.values()
    write(lab.place.folder / "known_hosts", "".join(known(one, f"{one.name},{one.address}") for one in hosts), 0o600)
    common = COMMON.format(keys=lab.place.folder / "keys", known_hosts=lab.known_hosts)
    write(lab.place.folder / "ssh_config", "".join(entry(one) for one in hosts) + common, 0o600)
