"""The rsync program: its options, its output, and its errors."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from slurm_ray_flow.blocks.processes import PRIVATE, Completed, inherited, run
from slurm_ray_flow.core.errors import SyncError

FILES = ("--times", "--perms", "--copy-links", "--chmod=D700,Fu=rX,Fgo=")
"""Options for files of snapshots: contents, times and the owner's right to execute, without write permission."""
WRITTEN = ("--times", "--no-links", "--executability")
"""Options for files that a function has written: plain files, their times, and permissions by the umask."""
LINKS = ("--links", "--omit-link-times")
"""Options for links as they are."""
_OLDEST = (3, 1, 0)
_TRANSFER_SECONDS = 7 * 86400.0
_SILENT_SECONDS = 600
# Written in place, so that a later try can continue after a cut; checked as a whole in the end.
_ONE_FILE = ("--perms", "--chmod=Fu=rw,Fgo=", "--copy-links", "--inplace", "--append-verify")
_FOLDER = (
    "--recursive",
    "--times",
    "--perms",
    "--chmod=D700,Fu=rwX,Fgo=",
    "--copy-links",
    "--partial-dir=.rsync-partial",
)
_ADVICE = {
    11: "See that neither the disk nor your quota is full there, and that the folder can be written.",
    12: "See that rsync is installed there, and that the connection holds.",
    23: "See that the files can be read here and written there.",
    24: "Files vanished while they were sent: launch again when nothing removes them.",
    30: "The connection stalled: launch again.",
    127: "Install rsync there.",
}


@dataclass(frozen=True)
class Copied:
    """The result of rsync: the files that it sent, relative to the source, and their bytes."""

    names: tuple[str, ...]
    bytes_sent: int


def copy(source: str, destination: str, names: Sequence[str], options: Sequence[str], umask: int = PRIVATE) -> Copied:
    """Copy some files of a folder, without those that are equal at the destination.

    Args:
        source, destination: folders, as rsync writes them.
        names: files relative to both; any bytes but NUL.
        options: further options of rsync.
        umask: the umask of rsync here; -1 for that of this process.

    Raises:
        SyncError: rsync is missing, too old, or fails.
    """
    command = (
        *(program(), "--files-from=-", "--from0", f"--timeout={_SILENT_SECONDS}", *options),
        *("--out-format=%i %n", "--stats", "--no-human-readable", f"{source}/", f"{destination}/"),
    )
    # rsync takes a name that starts with "#" or ";" for a comment.
    name_list = "".join(f"./{name}\0" if name[0] in "#;" else f"{name}\0" for name in names)
    result = run(
        command,
        stdin=name_list.encode("utf-8", "surrogateescape"),
        timeout=_TRANSFER_SECONDS,
        env=_environment(),
        umask=umask,
    )
    if not result.ok:
        raise _failure(result, destination)
    return parsed(result.stdout)


def copy_file(source: str, destination: str, options: Sequence[str], most: int | None = None) -> None:
    """Copy one file, private to its user, and continue the partial file of an earlier try.

    Args:
        source, destination: files, as rsync writes them.
        options: further options of rsync.
        most: the most bytes that may be written, whatever size the other end claims, rounded up to a block.

    Raises:
        SyncError: rsync is missing, too old, or fails.
    """
    size_limit = () if most is None else ("/bin/sh", "-c", 'ulimit -f "$0" && exec "$@"', str(-(-most // 512)))
    _copy_all((*_ONE_FILE, *options, source), destination, size_limit)


def copy_folder(source: str, destination: str, options: Sequence[str]) -> None:
    """Copy the content of a folder, private to its user; existing files stay.

    Args:
        source, destination: folders, as rsync writes them.
        options: further options of rsync.

    Raises:
        SyncError: rsync is missing, too old, or fails.
    """
    _copy_all((*_FOLDER, *options, f"{source}/"), f"{destination}/")


def _copy_all(arguments: Sequence[str], destination: str, start: Sequence[str] = ()) -> None:
    command = (*start, program(), f"--timeout={_SILENT_SECONDS}", *arguments, destination)
    done = run(command, timeout=_TRANSFER_SECONDS, env=_environment())
    if not done.ok:
        raise _failure(done, destination)


def parsed(output: str) -> Copied:
    """Parse the output of `--out-format="%i %n" --stats --no-human-readable`.

    Raises:
        SyncError: it is not what rsync prints.
    """
    total = re.search(r"^Total bytes sent: (\d+)$", output, re.MULTILINE)
    if total is None:
        raise SyncError(
            "rsync's answer can't be understood.", where=output[-500:], advice="Install rsync 3.1 or later."
        )
    names = re.findall(r"^[<>]f\S{9} (.*)$", output, re.MULTILINE)
    return Copied(tuple(_unescaped(name) for name in names), int(total[1]))


def checked_version(text: str) -> None:
    """Check the output of `rsync --version`.

    Raises:
        SyncError: it is older than 3.1, or another program of that name, such as the openrsync of macOS.
    """
    version = re.match(r"rsync\s+version v?(\d+)\.(\d+)\.(\d+)", text)
    if version and tuple(map(int, version.groups())) >= _OLDEST:
        return
    raise SyncError(
        f"rsync 3.1 or later is needed; this is {text.splitlines()[0] if text else 'something else'}.",
        where=shutil.which("rsync") or "PATH",
        advice="On macOS: brew install rsync (its own lacks options). On Linux: update the package rsync.",
    )


@lru_cache(maxsize=1)
def program() -> str:
    """The path of rsync; checked once per process.

    Raises:
        SyncError: it is missing, or too old.
    """
    path = shutil.which("rsync")
    if path is None:
        raise SyncError(
            "The program rsync is not installed here.",
            where=os.environ.get("PATH", ""),
            advice="Install the package rsync: apt install rsync, dnf install rsync, or brew install rsync.",
        )
    checked_version(run((path, "--version"), timeout=60).stdout)
    return path


def _environment() -> dict[str, str]:
    """The environment of rsync: in the C locale it escapes all but ASCII in names, which can be read back exactly."""
    return {**inherited(), "LC_ALL": "C"}


def _failure(done: Completed, destination: str) -> SyncError:
    messages = done.stderr.strip().splitlines()
    return SyncError(
        f"rsync failed: {' | '.join(messages[:3]) or f'exit code {done.exit_code}'}",
        where=destination,
        advice=_ADVICE.get(done.exit_code, "Look at rsync's words above."),
    )


def _unescaped(name: str) -> str:
    raw = re.sub(rb"\\#([0-7]{3})", lambda match: bytes([int(match[1], 8)]), name.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")
