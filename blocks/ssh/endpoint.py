"""The endpoint of a connection (host, user, keys), from the block and from OpenSSH's configuration.

OpenSSH itself is asked (`ssh -G`), so that Include, Match and its defaults mean here what they mean there.
"""

from __future__ import annotations

import contextlib
import getpass
import glob
import os
import re
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from slurm_ray_flow.blocks.processes import run, withhold
from slurm_ray_flow.core.errors import OptionError

ALGORITHMS = ("kexalgorithms", "ciphers", "macs", "hostkeyalgorithms")


@dataclass(frozen=True)
class Endpoint:
    """One server to log in to.

    Attributes:
        name: what the user calls it.
        host, port, user: where and as whom.
        known_as: its name in known_hosts.
        key_files: private keys, in order.
        keys_named: the user has named them, so a missing one is an error.
        only_key_files: other keys of the SSH agent are not tried.
        agent: the socket of the SSH agent that is asked for keys; None for none.
        known_hosts: files, in order; the first is where new keys go.
        through: servers to pass on the way, in order.
        proxy_command: the shell's command that leads there; empty for a connection of our own.
        known_hosts_command: program and arguments that print more lines of known_hosts.
        revoked: files of host keys that are not to be believed.
        algorithms: for each of ALGORITHMS that the configuration sets, what it allows.
        by_hand: the command that leads there in a terminal.
    """

    name: str
    host: str
    port: int
    user: str
    known_as: str
    key_files: tuple[Path, ...]
    keys_named: bool
    only_key_files: bool
    agent: Path | None
    known_hosts: tuple[Path, ...]
    through: tuple[Endpoint, ...] = ()
    proxy_command: str = ""
    known_hosts_command: tuple[str, ...] = ()
    revoked: tuple[Path, ...] = ()
    algorithms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    by_hand: str = "ssh"

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + ("" if self.port == 22 else f":{self.port}")


@dataclass(frozen=True)
class SshSettings:
    """The user's settings of a server; empty ones are left to OpenSSH's configuration.

    Attributes:
        host: a name, an address, or a Host of the configuration.
        config: another file than ~/.ssh/config.
        through: servers to pass, "user@host:port" each; None for what the configuration says.
    """

    host: str
    user: str = ""
    port: int | None = None
    key_file: Path | None = None
    known_hosts: Path | None = None
    through: tuple[str, ...] | None = None
    config: Path | None = None


def password_variable(name: str) -> str:
    """The environment variable that may hold a cluster's password: "desi" has DESI_PASSWORD.

    A shell sets none that begins with a digit, so an address has an underscore before it.
    """
    letters = re.sub(r"[^A-Z0-9]", "_", name.upper())
    return f"{'_' if letters[:1].isdigit() else ''}{letters}_PASSWORD"


def resolved(wanted: SshSettings, depth: int = 0) -> Endpoint:
    """Ask OpenSSH for the settings that the user has left empty.

    Raises:
        OptionError: the host's name can't be meant, the configuration is wrong, or OpenSSH is not installed.
    """
    if depth > 8:
        raise OptionError("the ProxyJump of this host leads to itself", where=wanted.host, advice="see ~/.ssh/config")
    config = _said(wanted)
    names = _through(wanted, config)
    hops = tuple(resolved(_hop(name, wanted), depth + 1) for name in names)
    flattened = tuple(each for hop in hops for each in (*hop.through, hop))
    host, port, user = config["hostname"][0], wanted.port or int(config["port"][0]), wanted.user or config["user"][0]
    known_as = config.get("hostkeyalias", [host if port == 22 else f"[{host}]:{port}"])[0]
    tokens = _tokens(wanted.host, host, port, user)
    return Endpoint(
        name=wanted.host,
        host=host,
        port=port,
        user=user,
        known_as=known_as,
        key_files=(wanted.key_file.expanduser(),)
        if wanted.key_file
        else _paths(config.get("identityfile", []), tokens),
        keys_named=wanted.key_file is not None,
        only_key_files=wanted.key_file is not None or config.get("identitiesonly") == ["yes"],
        agent=_agent(config.get("identityagent", ["SSH_AUTH_SOCK"])[0], tokens),
        known_hosts=_known_hosts(wanted, config, tokens),
        through=flattened,
        proxy_command=_proxy_command(wanted, config, tokens),
        known_hosts_command=_known_hosts_command(wanted, config, {**tokens, "H": known_as, "I": "HOSTNAME"}),
        revoked=_paths(config.get("revokedhostkeys", []), tokens),
        algorithms=_algorithms(config),
        by_hand=_by_hand(wanted),
    )


def _by_hand(wanted: SshSettings) -> str:
    files = {"-F": wanted.config, "-i": wanted.key_file}
    given = [word for option, path in files.items() if path for word in (option, str(path.expanduser()))]
    more = {"-p": wanted.port, "-J": ",".join(wanted.through or ())}
    given += [word for option, value in more.items() if value for word in (option, str(value))]
    return shlex.join(["ssh", *given, f"{wanted.user}@{wanted.host}" if wanted.user else wanted.host])


def _known_hosts(wanted: SshSettings, config: dict[str, list[str]], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    if wanted.known_hosts:
        return (wanted.known_hosts.expanduser(),)
    texts = (config.get("userknownhostsfile", [""])[0] + " " + config.get("globalknownhostsfile", [""])[0]).split()
    return _paths(texts, tokens)


def _paths(texts: Sequence[str], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(Path(_expanded(text, tokens)).expanduser() for text in texts if text != "none")


def _agent(text: str, tokens: Mapping[str, str]) -> Path | None:
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        text = os.environ.get(text.removeprefix("$"), "none")
    return next(iter(_paths([text], tokens)), None)


def _tokens(name: str, host: str, port: int, user: str) -> dict[str, str]:
    me = socket.gethostname()
    here = {"d": str(Path.home()), "u": getpass.getuser(), "i": str(os.getuid()), "l": me, "L": me.split(".")[0]}
    return {"%": "%", "h": host, "n": name, "p": str(port), "r": user, "k": host, **here}


def _through(wanted: SshSettings, config: dict[str, list[str]]) -> Sequence[str]:
    if wanted.through is not None:
        return wanted.through
    jump = config.get("proxyjump", ["none"])[0]
    return [] if jump == "none" else jump.split(",")


def _algorithms(config: dict[str, list[str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The algorithms that the configuration sets; OpenSSH's defaults are left to paramiko's, which are no worse."""
    set_ = [name for name in ALGORITHMS if name in config and config[name] != _usual().get(name)]
    return tuple((name, tuple(config[name][0].split(","))) for name in set_)


def _proxy_command(wanted: SshSettings, config: dict[str, list[str]], tokens: Mapping[str, str]) -> str:
    command = config.get("proxycommand", ["none"])[0]
    if command == "none" or wanted.through is not None:
        return ""
    if config.get("proxyusefdpass") == ["yes"]:
        raise OptionError(
            "ProxyUseFdpass is not supported", where=wanted.host, advice="write a ProxyCommand that passes data on"
        )
    whole = _expanded(command, tokens)
    if any(shlex.quote(tokens[token]) != tokens[token] for token in "hnr" if f"%{token}" in command):
        raise OptionError("this ProxyCommand would hold signs that a shell reads", where=f"{wanted.host}: {whole}")
    return whole


def _known_hosts_command(
    wanted: SshSettings, config: dict[str, list[str]], tokens: Mapping[str, str]
) -> tuple[str, ...]:
    command = config.get("knownhostscommand", ["none"])[0]
    if re.search("%[fKt]", command):
        raise OptionError(
            "a KnownHostsCommand that asks for the key (%f, %K, %t) is not supported",
            where=wanted.host,
            advice="write one that asks for the name (%H), or `KnownHostsCommand none` for this host",
        )
    return () if command == "none" else tuple(_expanded(word, tokens) for word in shlex.split(command))


def _expanded(text: str, tokens: Mapping[str, str]) -> str:
    """A text with tokens such as %r expanded, which `ssh -G` leaves."""
    return re.sub("%(.)", lambda found: tokens.get(found[1], found[0]), text)


def _hop(text: str, wanted: SshSettings) -> SshSettings:
    name = text.strip().removeprefix("ssh://")
    user, _, rest = name.rpartition("@")
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]:")
        host = host.rstrip("]")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    else:
        host, port = rest, ""
    if port and not port.isdigit():
        raise OptionError(f"{text!r} is no server to jump through", advice='write it as "user@host:port"')
    return SshSettings(
        host, user=user, port=int(port) if port else None, known_hosts=wanted.known_hosts, config=wanted.config
    )


def _said(wanted: SshSettings) -> dict[str, list[str]]:
    if not wanted.host or wanted.host.startswith("-") or any(letter.isspace() for letter in wanted.host):
        raise OptionError(
            f"{wanted.host!r} is no name of a host", advice="write a name, an address or a Host of ~/.ssh/config"
        )
    withhold(password_variable(wanted.host))
    options = [*(["-F", str(wanted.config.expanduser())] if wanted.config else [])]
    options += [*(["-l", wanted.user] if wanted.user else []), *(["-p", str(wanted.port)] if wanted.port else [])]
    done = run([_program(), *options, "-G", wanted.host], timeout=30)
    if not done.ok:
        raise OptionError(
            f"OpenSSH does not understand its configuration: {done.stderr.strip()}",
            where=str(wanted.config or "~/.ssh/config"),
            advice=f"try: ssh -G {wanted.host}",
        )
    return _settings(done.stdout)


@cache
def _usual() -> dict[str, list[str]]:
    """OpenSSH's defaults."""
    return _settings(run([_program(), "-F", "none", "-G", "host"], timeout=30).stdout)


def _settings(text: str) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        settings.setdefault(name, []).append(value)
    return settings


def _program() -> str:
    path = shutil.which("ssh")
    if path is None:
        raise OptionError(
            "OpenSSH's client is not installed here",
            advice="install it: apt install openssh-client, or dnf install openssh-clients",
        )
    return path


CONFIG = Path("~/.ssh/config")
DEEPEST = 8


def configured_hosts(config: Path = CONFIG) -> list[str]:
    """Each `Host` of the configuration and of what it includes that is one name, in the order of the files.

    Hosts whose user is git are no places to log in to, and left out. A file that can't be read has none.
    """
    found: dict[str, str] = {}
    _read(config.expanduser(), found, [], 0)
    return [name for name, user in found.items() if user != "git"]


def is_known(endpoint: Endpoint) -> bool:
    """Whether a server has an address: by the configuration, or by the network. Behind another one, that one knows."""
    if endpoint.through or endpoint.host != endpoint.name:
        return True
    with contextlib.suppress(OSError, UnicodeError):
        return bool(socket.getaddrinfo(endpoint.host, endpoint.port))
    return False


def _read(file: Path, found: dict[str, str], current: list[str], depth: int) -> None:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, *values = _words(line)
        if key == "host":
            current[:] = [name for name in values if not set(name) & set("*?!")]
            for name in current:
                found.setdefault(name, "")
        elif key == "match":
            current.clear()
        elif key == "user" and values:
            for name in current:
                found[name] = found[name] or values[0]
        elif key == "include" and depth < DEEPEST:
            for path in _included(values):
                _read(path, found, current, depth + 1)


def _words(line: str) -> list[str]:
    """The key in lower case and its values; OpenSSH takes `Key value`, `Key=value` and quotes."""
    try:
        words = shlex.split(re.sub(r"^(\s*\w+)\s*=", r"\1 ", line), comments=True)
    except ValueError:
        return [""]
    return [words[0].lower(), *words[1:]] if words else [""]


def _included(patterns: list[str]) -> list[Path]:
    """The files of an Include, by ssh_config(5) relative to ~/.ssh."""
    paths = [str(Path(CONFIG.expanduser().parent, Path(pattern).expanduser())) for pattern in patterns]
    return [Path(path) for pattern in paths for path in sorted(glob.glob(pattern))]  # noqa: PTH207 - it is absolute
