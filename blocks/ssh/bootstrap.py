"""The start of the agent over a channel, with any login shell, and any output of its start files."""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import sys
from typing import Any

from slurm_ray_flow.blocks import programs
from slurm_ray_flow.blocks.ssh import answers
from slurm_ray_flow.core.errors import ConnectionFailed, EnvironmentFailed, OptionError, SlurmRayFlowError
from slurm_ray_flow.remote.shared import framing

_NOISE = 256 * 1024
_FIND = """
usable() {
  case $1 in /*) [ -x "$1" ] || return 1;; *) command -v "$1" >/dev/null 2>&1 || return 1;; esac
  "$1" -I -c 'import sys; sys.exit(sys.version_info[:2] < (3, 9))' </dev/null >/dev/null 2>&1 && return
  seen="$seen $1"
  return 1
}
seen=
python=
for each in WANTED; do
  if usable "$each"; then python=$each; break; fi
done
if [ -z "$python" ]; then
  text='{"python": "'$(printf %s "$seen" | LC_ALL=C tr -cd 'A-Za-z0-9 ._/+-')'"}'
  printf '%s%08x%016x%s' WORD ${#text} 0 "$text"
  exit 1
fi
"""
_EVERYWHERE = (
    "python{home} python3.13 python3.12 python3.11 python3.10 python3.9 python3 "
    '"$HOME"/.pyenv/versions/{home}*/bin/python3 "$HOME"/.pyenv/versions/3.*/bin/python3 '
    "/opt/python/*/bin/python3 /opt/python*/bin/python3 "
    '"$HOME"/.local/share/uv/python/cpython-{home}*/bin/python3 "$HOME"/.local/share/uv/python/*/bin/python3'
)


def command(script: str) -> str:
    """One line that runs a POSIX script under any login shell: sh, bash, zsh, csh, fish."""
    coded = base64.b64encode(script.encode("utf-8", "surrogateescape")).decode()
    return f"exec /bin/sh -c 'eval \"$(printf %s {coded} | base64 -d)\"'"


def after_noise(script: str) -> tuple[str, bytes]:
    """A command that runs `script`, and the marker that it writes before the script's output."""
    marker = secrets.token_hex(16)
    return command(f"printf %s {marker}\n{script}"), marker.encode()


def skip_noise(read: framing.Read, marker: bytes) -> None:
    """Skip the output of a login shell up to the marker.

    Raises:
        framing.StreamEnded: the marker never came.
    """
    tail, total = b"", 0
    while not tail.endswith(marker):
        piece = read(len(marker) - _length_of_begun_marker(tail, marker))
        total += len(piece)
        if not piece or total > _NOISE:
            raise framing.StreamEnded(tail.decode(errors="replace").strip()[-300:])
        tail = (tail + piece)[-1024:]


def _length_of_begun_marker(tail: bytes, marker: bytes) -> int:
    """The length of the marker's beginning at the end of `tail`: no byte after the marker may be read."""
    return next(size for size in range(len(marker), -1, -1) if tail.endswith(marker[:size]))


def agent_command(root: str, python: str, patience: float) -> tuple[str, bytes]:
    """The command that starts the agent, and the marker before the agent's output.

    Args:
        root: the root on the host: absolute, or "~/...".
        python: "" for the best Python there, a path, or "module:NAME" for one of an environment module.
        patience: seconds without a message from home after which the agent ends.
    """
    marker = secrets.token_hex(16)
    loader = shlex.quote(programs.files()["remote/agent/loader.py"].decode())
    arguments = " ".join(map(shlex.quote, (marker, checked_root(root), programs.digest(), str(patience))))
    script = _find_python_script(python).replace("WORD", marker) + f'exec "$python" -I -c {loader} {arguments}\n'
    return command(script), marker.encode()


def checked_root(root: str) -> str:
    """The root, checked."""
    if not (root.startswith(("/", "~/")) or root == "~") or "\0" in root:
        raise OptionError(f"{root!r} is no root folder", advice='write it from "/" or from "~/" on')
    return root


def _find_python_script(python: str) -> str:
    home = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python in {"", "download"}:  # a Python that is downloaded is for functions; any will do for the agent
        return _FIND.replace("WANTED", _EVERYWHERE.format(home=home))
    if python.startswith("module:"):
        name = shlex.quote(python.removeprefix("module:"))
        load = (
            f"command -v module >/dev/null 2>&1 || . /etc/profile >/dev/null 2>&1\nmodule load {name} >/dev/null 2>&1\n"
        )
        return load + _FIND.replace("WANTED", f"python{home} python3 python")
    path = f'"$HOME"/{shlex.quote(python[2:])}' if python.startswith("~/") else shlex.quote(python)
    return _FIND.replace("WANTED", path)


def exchange_greeting(read: framing.Read, write: Any, name: str, root: str, python: str) -> dict[str, Any]:
    """Send the programs if the loader needs them, and give the agent's greeting.

    Raises:
        SlurmRayFlowError: the host has no Python, or the root can't be used.
        framing.StreamEnded: the channel ended.
        framing.NotAMessage: the data are no message.
    """
    message, _ = answers.checked_message(read)
    if "need" in message:
        files = {path: data.decode() for path, data in programs.files().items()}
        for piece in framing.packed(files):
            write(piece)
        message, _ = answers.checked_message(read)
    if "hello" in message:
        return answers.greeting(message["hello"])
    raise _greeting_error(message, name, root, python)


def _greeting_error(message: dict[str, Any], name: str, root: str, python: str) -> SlurmRayFlowError:
    if "python" in message:
        pythons = str(message["python"]).strip() or "none"
        return EnvironmentFailed(
            "there is no Python 3.9 or later" + (f" at python={python!r}" if python else ""),
            where=f"{name} (found: {pythons})",
            advice='name one in the block: a path, or "module:NAME" where Python comes from an environment module',
        )
    if "error" in message:
        return SlurmRayFlowError(
            str(message["error"]),
            where=f"{name}, {message.get('where') or root}",
            advice="see that it is yours and can be written, or choose another root in the block",
        )
    return answers.protocol_failure(name, f"it says {json.dumps(message)[:300]}")


def no_command_error(error: framing.StreamEnded, name: str, stderr: str, by_hand: str) -> SlurmRayFlowError:
    """The error for a shell that ended early: an account without a shell, a broken rc file."""
    output = " | ".join(text for text in (str(error), stderr.strip()[-500:]) if text and text != "the stream ended")
    shell = "; the account's log-in shell may run none (/bin/false, nologin), or a start file ends with `exit`"
    return ConnectionFailed(
        "the log-in works, but no command can be run" + (f": {output}" if output else ""),
        where=name,
        advice=f"try `{by_hand} echo there`, which writes `there` once it works{shell}",
    )


def shell_error(name: str, by_hand: str) -> SlurmRayFlowError:
    """The error for a shell that never runs the command: its start file runs another program, or waits."""
    return ConnectionFailed(
        "the log-in works, but the start file of the shell there does not return, so no command can be run",
        where=name,
        advice="an `exec fish`, an `exec zsh` or a question in ~/.bashrc is for terminals only: "
        f"write `[[ $- == *i* ]] || return` before it; then `{by_hand} true` ends by itself",
    )
