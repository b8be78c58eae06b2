"""Trust in host keys: each unknown key is shown, and saved after a confirmation."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm_ray_flow.blocks.ssh import known_hosts
from slurm_ray_flow.blocks.ssh.authentication import Secrets, log_in
from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts, check_host_key, connect_to
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint
from slurm_ray_flow.blocks.ssh.known_hosts import KeyVerdict
from slurm_ray_flow.blocks.ssh.open_connection import OpenConnection, OpenConnectionError
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed


@dataclass(frozen=True)
class ShownKey:
    """The key that a server has shown.

    Attributes:
        server: the server: user@host:port.
        name: its name in known_hosts.
        kind: "ssh-ed25519", ...
        fingerprint: as ssh-keygen prints it.
        file: the known_hosts file for the key.
        known: whether the key was known already.
    """

    server: str
    name: str
    kind: str
    fingerprint: str
    file: Path
    known: bool


def trust(
    endpoint: Endpoint,
    secrets: Callable[[Endpoint], Secrets],
    confirm: Callable[[ShownKey], bool],
    timeouts: ConnectionTimeouts,
    label: str,
) -> list[ShownKey]:
    """Check the host keys of a server and its jump hosts, and save new ones; gives the shown keys, in order.

    Args:
        endpoint: the server.
        secrets: the secrets for the log-in at jump hosts.
        confirm: says whether an unknown key is right.
        timeouts: the timeouts of each connection.
        label: the user's name for the server.

    Raises:
        HostKeyFailed: a key has changed, is revoked, or was not confirmed.
        ConnectionFailed: a server can't be reached.
    """
    keys: list[ShownKey] = []
    chain: list[OpenConnection] = []
    try:
        for server in (*endpoint.through, endpoint):
            lines = known_hosts.known_lines(server)
            chain.append(connect_to(server, chain, lines, timeouts))
            keys.append(_check_or_confirm(chain[-1], server, lines, confirm, label))
            if server != endpoint:
                log_in(chain[-1], server, secrets(server))
    except OpenConnectionError as error:
        raise ConnectionFailed(
            str(error), where=endpoint.name, advice="see that its name is right and the server up"
        ) from None
    finally:
        for opened in reversed(chain):
            opened.close()
    return keys


def _check_or_confirm(
    opened: OpenConnection,
    server: Endpoint,
    lines: list[known_hosts.KnownHostLine],
    confirm: Callable[[ShownKey], bool],
    label: str,
) -> ShownKey:
    kind, key = opened.host_key
    verdict = known_hosts.key_verdict(server, lines, kind, key)
    if verdict in {KeyVerdict.CHANGED, KeyVerdict.REVOKED}:
        check_host_key(opened, server, lines, label)
    file = server.known_hosts[0] if server.known_hosts else Path("~/.ssh/known_hosts").expanduser()
    known = verdict is KeyVerdict.KNOWN
    shown = ShownKey(str(server), server.known_as, kind, known_hosts.fingerprint(key), file, known)
    if not known:
        if not confirm(shown):
            raise HostKeyFailed(
                f"the host key of {server.name} was not confirmed",
                where=f"{shown.kind} {shown.fingerprint}",
                advice="ask the people who run the server for its fingerprint",
            )
        append_line(file, known_hosts.written(server.known_as, kind, key))
        if known_hosts.verdict_of(known_hosts.read(server.known_hosts), server.known_as, key) is not KeyVerdict.KNOWN:
            raise _not_saved(file, "it is not there when it is read again")
    return shown


def append_line(file: Path, line: str) -> None:
    """Append a line to a private file, whoever else does so at the same time.

    Raises:
        HostKeyFailed: it can't be written.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(
            os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb+", buffering=0
        ) as known_hosts:
            with contextlib.suppress(OSError):  # a file system without locks: appending alone is nearly as good
                fcntl.flock(known_hosts, fcntl.LOCK_EX)
            if known_hosts.seek(0, os.SEEK_END):
                known_hosts.seek(-1, os.SEEK_END)
                line = line if known_hosts.read(1) == b"\n" else f"\n{line}"
            known_hosts.write(line.encode())
    except OSError as error:
        raise _not_saved(file, error.strerror or str(error)) from None


def _not_saved(file: Path, why: str) -> HostKeyFailed:
    return HostKeyFailed(
        f"the host key can't be kept: {why}",
        where=str(file),
        advice="name a file that you can write as known_hosts in the block, or as UserKnownHostsFile in ~/.ssh/config",
    )
