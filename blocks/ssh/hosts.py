"""The hosts that the user's OpenSSH configuration names, or the network."""

from __future__ import annotations

import contextlib
import glob
import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh.endpoint import Endpoint

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
    """As in ssh_config(5): relative to ~/.ssh."""
    paths = [str(Path(CONFIG.expanduser().parent, Path(pattern).expanduser())) for pattern in patterns]
    return [Path(path) for pattern in paths for path in sorted(glob.glob(pattern))]  # noqa: PTH207 - it is absolute
