"""The endpoint of a connection (host, user, keys), from the block and from OpenSSH's configuration.

OpenSSH itself resolves the configuration (`ssh -G`), with Include, Match and its defaults.
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
        name: the user's name for the server.
        host, port, user: the address, and the account.
        known_as: the server's name in known_hosts.
        key_files: private keys, in order.
        keys_named: whether the user has named the keys; then a missing key is an error.
        only_key_files: whether other keys of the SSH agent are not tried.
        agent: the socket of the SSH agent; None for no agent.
        known_hosts: files of known host keys, in order; new keys are written into the first.
        through: jump hosts, in order.
        proxy_command: the ProxyCommand; "" for a direct connection.
        known_hosts_command: program and arguments that print more lines of known_hosts.
        revoked: files of revoked host keys.
        algorithms: the allowed algorithms for each of ALGORITHMS that the configuration sets.
        by_hand: the command that connects in a terminal.
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
        through: jump hosts, "user@host:port" each; None takes those of the configuration.
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

    The name for an address begins with an underscore, since no shell variable begins with a digit.
    """
    letters = re.sub(r"[^A-Z0-9]", "_", name.upper())
    return f"{'_' if letters[:1].isdigit() else ''}{letters}_PASSWORD"


def resolved(settings: SshSettings, depth: int = 0) -> Endpoint:
    """The endpoint of these settings; OpenSSH's configuration completes empty ones.

    Raises:
        OptionError: the host's name or the configuration is wrong, or OpenSSH is not installed.
    """
    if depth > 8:
        raise OptionError("the ProxyJump of this host leads to itself", where=settings.host, advice="see ~/.ssh/config")
    config = _ssh_config(settings)
    names = _through(settings, config)
    hops = tuple(resolved(_hop(name, settings), depth + 1) for name in names)
    flattened = tuple(each for hop in hops for each in (*hop.through, hop))
    host, port = config["hostname"][0], settings.port or int(config["port"][0])
    user = settings.user or config["user"][0]
    known_as = config.get("hostkeyalias", [host if port == 22 else f"[{host}]:{port}"])[0]
    tokens = _tokens(settings.host, host, port, user)
    return Endpoint(
        name=settings.host,
        host=host,
        port=port,
        user=user,
        known_as=known_as,
        key_files=(settings.key_file.expanduser(),)
        if settings.key_file
        else _paths(config.get("identityfile", []), tokens),
        keys_named=settings.key_file is not None,
        only_key_files=settings.key_file is not None or config.get("identitiesonly") == ["yes"],
        agent=_agent(config.get("identityagent", ["SSH_AUTH_SOCK"])[0], tokens),
        known_hosts=_known_hosts(settings, config, tokens),
        through=flattened,
        proxy_command=_proxy_command(settings, config, tokens),
        known_hosts_command=_known_hosts_command(settings, config, {**tokens, "H": known_as, "I": "HOSTNAME"}),
        revoked=_paths(config.get("revokedhostkeys", []), tokens),
        algorithms=_algorithms(config),
        by_hand=_ssh_command(settings),
    )


def _ssh_command(settings: SshSettings) -> str:
    files = {"-F": settings.config, "-i": settings.key_file}
    arguments = [word for option, path in files.items() if path for word in (option, str(path.expanduser()))]
    options = {"-p": settings.port, "-J": ",".join(settings.through or ())}
    arguments += [word for option, value in options.items() if value for word in (option, str(value))]
    return shlex.join(["ssh", *arguments, f"{settings.user}@{settings.host}" if settings.user else settings.host])


def _known_hosts(settings: SshSettings, config: dict[str, list[str]], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    if settings.known_hosts:
        return (settings.known_hosts.expanduser(),)
    texts = (config.get("userknownhostsfile", [""])[0] + " " + config.get("globalknownhostsfile", [""])[0]).split()
    return _paths(texts, tokens)


def _paths(texts: Sequence[str], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(Path(_expanded(text, tokens)).expanduser() for text in texts if text != "none")


def _agent(text: str, tokens: Mapping[str, str]) -> Path | None:
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        text = os.environ.get(text.removeprefix("$"), "none")
    return next(iter(_paths([text], tokens)), None)


def _tokens(name: str, host: str, port: int, user: str) -> dict[str, str]:
    here = socket.gethostname()
    local = {"d": str(Path.home()), "u": getpass.getuser(), "i": str(os.getuid()), "l": here, "L": here.split(".")[0]}
    return {"%": "%", "h": host, "n": name, "p": str(port), "r": user, "k": host, **local}


def _through(settings: SshSettings, config: dict[str, list[str]]) -> Sequence[str]:
    if settings.through is not None:
        return settings.through
    jump = config.get("proxyjump", ["none"])[0]
    return [] if jump == "none" else jump.split(",")


def _algorithms(config: dict[str, list[str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The algorithms that the configuration sets; without a setting paramiko's defaults count."""
    set_ = [name for name in ALGORITHMS if name in config and config[name] != _default_config().get(name)]
    return tuple((name, tuple(config[name][0].split(","))) for name in set_)


def _proxy_command(settings: SshSettings, config: dict[str, list[str]], tokens: Mapping[str, str]) -> str:
    command = config.get("proxycommand", ["none"])[0]
    if command == "none" or settings.through is not None:
        return ""
    if config.get("proxyusefdpass") == ["yes"]:
        raise OptionError(
            "ProxyUseFdpass is not supported", where=settings.host, advice="write a ProxyCommand that passes data on"
        )
    expanded = _expanded(command, tokens)
    if any(shlex.quote(tokens[token]) != tokens[token] for token in "hnr" if f"%{token}" in command):
        raise OptionError("this ProxyCommand would hold signs that a shell reads", where=f"{settings.host}: {expanded}")
    return expanded


def _known_hosts_command(
    settings: SshSettings, config: dict[str, list[str]], tokens: Mapping[str, str]
) -> tuple[str, ...]:
    command = config.get("knownhostscommand", ["none"])[0]
    if re.search("%[fKt]", command):
        raise OptionError(
            "a KnownHostsCommand that asks for the key (%f, %K, %t) is not supported",
            where=settings.host,
            advice="write one that asks for the name (%H), or `KnownHostsCommand none` for this host",
        )
    return () if command == "none" else tuple(_expanded(word, tokens) for word in shlex.split(command))


def _expanded(text: str, tokens: Mapping[str, str]) -> str:
    """A text with tokens such as %r expanded, which `ssh -G` leaves unexpanded."""
    return re.sub("%(.)", lambda found: tokens.get(found[1], found[0]), text)


def _hop(text: str, settings: SshSettings) -> SshSettings:
    name = text.strip().removeprefix("ssh://")
    user, _, address = name.rpartition("@")
    if address.startswith("["):
        host, _, port = address[1:].partition("]:")
        host = host.rstrip("]")
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    else:
        host, port = address, ""
    if port and not port.isdigit():
        raise OptionError(f"{text!r} is no server to jump through", advice='write it as "user@host:port"')
    return SshSettings(
        host, user=user, port=int(port) if port else None, known_hosts=settings.known_hosts, config=settings.config
    )


def _ssh_config(settings: SshSettings) -> dict[str, list[str]]:
    if not settings.host or settings.host.startswith("-") or any(letter.isspace() for letter in settings.host):
        raise OptionError(
            f"{settings.host!r} is no name of a host", advice="write a name, an address or a Host of ~/.ssh/config"
        )
    withhold(password_variable(settings.host))
    options = ["-F", str(settings.config.expanduser())] if settings.config else []
    options += ["-l", settings.user] if settings.user else []
    options += ["-p", str(settings.port)] if settings.port else []
    result = run([_program(), *options, "-G", settings.host], timeout=30)
    if not result.ok:
        raise OptionError(
            f"OpenSSH does not understand its configuration: {result.stderr.strip()}",
            where=str(settings.config or "~/.ssh/config"),
            advice=f"try: ssh -G {settings.host}",
        )
    return _parse_config(result.stdout)


@cache
def _default_config() -> dict[str, list[str]]:
    """OpenSSH's defaults."""
    return _parse_config(run([_program(), "-F", "none", "-G", "host"], timeout=30).stdout)


def _parse_config(text: str) -> dict[str, list[str]]:
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
    """Each `Host` without patterns in the configuration and its included files, in the order of the files.

    Hosts with the user git, which allow no log-in, and unreadable files are left out.
    """
    users: dict[str, str] = {}
    _read(config.expanduser(), users, [], 0)
    return [name for name, user in users.items() if user != "git"]


def is_known(endpoint: Endpoint) -> bool:
    """Whether a server has an address by the configuration or the network; True behind a jump host, which knows it."""
    if endpoint.through or endpoint.host != endpoint.name:
        return True
    with contextlib.suppress(OSError, UnicodeError):
        return bool(socket.getaddrinfo(endpoint.host, endpoint.port))
    return False


def _read(file: Path, users: dict[str, str], current: list[str], depth: int) -> None:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, *values = _words(line)
        if key == "host":
            current[:] = [name for name in values if not set(name) & set("*?!")]
            for name in current:
                users.setdefault(name, "")
        elif key == "match":
            current.clear()
        elif key == "user" and values:
            for name in current:
                users[name] = users[name] or values[0]
        elif key == "include" and depth < DEEPEST:
            for path in _included(values):
                _read(path, users, current, depth + 1)


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
