"""Known host keys: the format of OpenSSH's known_hosts files, and the verdict about a key."""

from __future__ import annotations

import base64
import binascii
import enum
import fnmatch
import hashlib
import hmac
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_ray_flow.blocks.processes import run
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint
from slurm_ray_flow.core.errors import HostKeyFailed


class KeyVerdict(enum.Enum):
    """The verdict of the files about a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True)
class KnownHostLine:
    """One line of known_hosts: marker ("", "@revoked", "@cert-authority"), names, key, file and line number."""

    marker: str
    names: str
    kind: str
    key: bytes
    file: Path
    number: int


def read(files: Iterable[Path]) -> list[KnownHostLine]:
    """All valid lines of the files, in order; missing files are ignored."""
    lines: list[KnownHostLine] = []
    for file in files:
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        lines.extend(parsed(text, file))
    return lines


def parsed(text: str, file: Path) -> list[KnownHostLine]:
    """The lines of one file."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        try:
            key = base64.b64decode(fields[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        lines.append(KnownHostLine(marker, fields[0], fields[1], key, file, number))
    return lines


def names_match(names: str, host: str) -> bool:
    """Whether a line's names match a host: `desi`, `[desi]:2222`, patterns, `!patterns`, and hashed names."""
    if names.startswith("|1|"):
        return _hash_matches(names, host)
    patterns = names.lower().split(",")
    if any(pattern.startswith("!") and _matches(pattern[1:], host.lower()) for pattern in patterns):
        return False
    return any(_matches(pattern, host.lower()) for pattern in patterns)


def _matches(pattern: str, host: str) -> bool:
    # Square brackets stand for themselves here.
    return fnmatch.fnmatchcase(host, pattern.replace("[", "[[]"))


def _hash_matches(hashed: str, host: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in hashed.split("|")[2:4])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, host.lower().encode(), hashlib.sha1).digest(), digest)


def lines_of(lines: Sequence[KnownHostLine], host: str) -> list[KnownHostLine]:
    """The lines for a host."""
    return [line for line in lines if names_match(line.names, host)]


def verdict_of(lines: Sequence[KnownHostLine], host: str, key: bytes) -> KeyVerdict:
    """The verdict of lines about the key that a host has shown."""
    host_lines = lines_of(lines, host)
    if any(line.marker == "@revoked" and line.key == key for line in host_lines):
        return KeyVerdict.REVOKED
    plain_lines = [line for line in host_lines if not line.marker]
    if any(line.key == key for line in plain_lines):
        return KeyVerdict.KNOWN
    return KeyVerdict.CHANGED if plain_lines else KeyVerdict.UNKNOWN


def algorithms(lines: Sequence[KnownHostLine], host: str) -> list[str]:
    """The host key algorithms to prefer: the algorithms of the known keys."""
    names: list[str] = []
    for line in lines_of(lines, host):
        if not line.marker:
            names += ["rsa-sha2-512", "rsa-sha2-256"] if line.kind == "ssh-rsa" else [line.kind]
    return list(dict.fromkeys(names))


def fingerprint(key: bytes) -> str:
    """The fingerprint of a key, as ssh-keygen prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def written(host: str, kind: str, key: bytes) -> str:
    """A line that makes a key known."""
    return f"{host} {kind} {base64.b64encode(key).decode()}\n"


_SECONDS = 30.0
_KRL = b"SSHKRL\n\0"
"""The first bytes of a binary list of revoked keys."""


def known_lines(server: Endpoint) -> list[KnownHostLine]:
    """The lines of all known_hosts files of a server.

    Raises:
        HostKeyFailed: the configuration's KnownHostsCommand fails.
    """
    lines = read(server.known_hosts)
    if server.known_hosts_command:
        done = run(server.known_hosts_command, timeout=_SECONDS)
        if not done.ok:
            raise HostKeyFailed(
                f"the KnownHostsCommand for {server.name} fails: {done.stderr.strip() or done.exit_code}",
                where=server.known_hosts_command[0],
                advice="run it by hand; see `ssh -G` for how it is called",
            )
        lines += parsed(done.stdout, Path(server.known_hosts_command[0]))
    return lines


def key_verdict(server: Endpoint, lines: list[KnownHostLine], kind: str, key: bytes) -> KeyVerdict:
    """The verdict about a server's key, by its known_hosts lines and the lists of revoked keys.

    Raises:
        HostKeyFailed: a list of revoked keys can't be read.
    """
    if any(_is_revoked(file, kind, key) for file in server.revoked):
        return KeyVerdict.REVOKED
    return verdict_of(lines, server.known_as, key)


def _is_revoked(revoked: Path, kind: str, key: bytes) -> bool:
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
