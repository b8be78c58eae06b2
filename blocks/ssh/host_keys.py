"""What this machine holds of a server's host key: the files of known keys, KnownHostsCommand, RevokedHostKeys."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from slurm_ray_flow.blocks.shell import run
from slurm_ray_flow.blocks.ssh import known_hosts
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint
from slurm_ray_flow.blocks.ssh.known_hosts import Line, Verdict
from slurm_ray_flow.core.errors import HostKeyFailed

_SECONDS = 30.0
_KRL = b"SSHKRL\n\0"
"""What a list of revoked keys begins with that ssh-keygen has made."""


def known_lines(server: Endpoint) -> list[Line]:
    """The lines of known_hosts that are looked at.

    Raises:
        HostKeyFailed: the configuration's own command for them fails.
    """
    lines = known_hosts.read(server.known_hosts)
    if server.known_hosts_command:
        done = run(server.known_hosts_command, timeout=_SECONDS)
        if not done.ok:
            raise HostKeyFailed(
                f"the KnownHostsCommand for {server.name} fails: {done.stderr.strip() or done.exit_code}",
                where=server.known_hosts_command[0],
                advice="run it by hand; see `ssh -G` for how it is called",
            )
        lines += known_hosts.parsed(done.stdout, Path(server.known_hosts_command[0]))
    return lines


def judged(server: Endpoint, lines: list[Line], kind: str, key: bytes) -> Verdict:
    """What is held of the key that a server has shown.

    Raises:
        HostKeyFailed: a list of revoked keys can't be read.
    """
    if any(_is_in(file, kind, key) for file in server.revoked):
        return Verdict.REVOKED
    return known_hosts.judge(lines, server.known_as, key)


def _is_in(revoked: Path, kind: str, key: bytes) -> bool:
    coded = base64.b64encode(key)
    try:
        data = revoked.read_bytes()
    except OSError as error:  # OpenSSH lets nobody through then either
        raise HostKeyFailed(
            f"the list of revoked host keys can't be read: {error.strerror}",
            where=str(revoked),
            advice="mend RevokedHostKeys in OpenSSH's configuration",
        ) from None
    if not data.startswith(_KRL):
        return coded in data.split()
    with tempfile.NamedTemporaryFile(suffix=".pub") as shown:
        shown.write(b"%s %s\n" % (kind.encode(), coded))
        shown.flush()
        return not run(["ssh-keygen", "-Q", "-f", str(revoked), shown.name], timeout=_SECONDS).ok
