"""Starts the agent over a new SSH channel: `python -I -c <this file> MARKER ROOT DIGEST SECONDS`.

This file imports no other one, since the package's programs may be missing on the cluster. Home ignores all output
before MARKER, and reads messages (framing.py) after it. Home sends missing programs on request, as one JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from typing import Any, Dict


def main() -> None:
    """Check the owner of the root, install missing programs, and become the agent."""
    marker, root, digest, seconds = sys.argv[1:5]
    os.environ["SRF_UMASK"] = "{:o}".format(os.umask(0o077))  # limits.py restores it for the user's code
    os.write(1, marker.encode())
    try:
        target = prepared(os.path.expanduser(root), digest)
    except OSError as error:
        say(
            {
                "error": "the programs can't be put there: {}".format(error.strerror or error),
                "where": error.filename or root,
            }
        )
        sys.exit(1)
    agent = os.path.join(target, "slurm_ray_flow", "remote", "agent", "agent.py")
    os.execv(sys.executable, [sys.executable, "-I", agent, os.path.dirname(os.path.dirname(target)), seconds])


def prepared(root: str, digest: str) -> str:
    """The folder of the programs, which are installed if they are missing, or damaged by a loss of power."""
    tools = os.path.join(os.path.abspath(root), "tools")
    private(tools)
    target = os.path.join(tools, digest)
    if is_whole(target):
        os.utime(target)  # programs in use don't expire
    else:
        say({"need": digest})
        files: Dict[str, str] = json.loads(exactly(int(exactly(24)[:8], 16)))
        install(target, {name: text.encode() for name, text in files.items()})
    own(target)
    return target


def digest_of(files: Dict[str, bytes]) -> str:
    """The digest of the programs' content, given by their names in the package."""
    state = hashlib.sha256()
    for name, data in sorted(files.items()):
        state.update("{}\0{}\0".format(name, len(data)).encode() + data)
    return state.hexdigest()[:16]


def is_whole(target: str) -> bool:
    """Whether the programs in a folder have the digest that is the folder's name."""
    package = os.path.join(target, "slurm_ray_flow")
    try:
        files = {}
        for folder, _, names in os.walk(package):
            for path in [os.path.join(folder, name) for name in names if name.endswith(".py")]:
                with open(path, "rb") as stream:
                    files[os.path.relpath(path, package)] = stream.read()
    except OSError:
        return False
    return digest_of(files) == os.path.basename(target)


def private(path: str) -> None:
    """Make a folder in the root with its parents; both the folder and the root must be this user's."""
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        if parent != path:
            make_above(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    own(os.path.dirname(path))
    own(path)


def make_above(path: str) -> None:
    """Make a folder and its parents, all private."""
    if not os.path.isdir(path):
        make_above(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def own(path: str) -> None:
    """Refuse a folder, or a link to one, of another user."""
    foreign = {os.stat(path).st_uid, os.lstat(path).st_uid} - {os.geteuid(), 0}
    if foreign:
        raise OSError(1, "it belongs to another user (number {})".format(min(foreign)), path)


def install(target: str, files: Dict[str, bytes]) -> None:
    """Write the programs to a temporary folder and rename it; damaged programs are replaced."""
    temporary = tempfile.mkdtemp(dir=os.path.dirname(target), prefix=".")
    new = os.path.join(temporary, "new")
    os.mkdir(new, 0o700)
    try:
        for name, data in files.items():
            path = os.path.join(new, "slurm_ray_flow", name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
                stream.write(data)
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, os.path.join(temporary, "damaged"))
        try:
            os.rename(new, target)
        except OSError:  # another process was first
            if not os.path.isdir(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exactly(size: int) -> bytes:
    """Read exactly so many bytes of stdin; the agent reads the rest."""
    received = b""
    while len(received) < size:
        data = os.read(0, size - len(received))
        if not data:
            sys.exit(1)
        received += data
    return received


def say(message: Dict[str, Any]) -> None:
    """Write a message to stdout."""
    text = json.dumps(message).encode()
    data = "{:08x}{:016x}".format(len(text), 0).encode() + text
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
