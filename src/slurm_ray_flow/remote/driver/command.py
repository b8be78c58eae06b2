"""A shell command as an item of a campaign: run in a folder of its own, its files read, its process group ended."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

LARGEST_OUTPUT = 10 << 20
"""The most bytes of one output file that come home."""
LONGEST_TAIL = 2000
"""So many bytes of what a command printed last are in its error."""
FOLDERS = "commands"
"""The folder, beside what the run's items printed, that holds the commands' own folders."""
_GUARD = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null'
"""Ends a process group when the pipe to it closes, as it does at the end of whoever holds the other end."""
_BEGIN = 'read -r _ || exit 1; exec "$1" -c "$2" </dev/null'
"""Begins a command when it is told to, and not where the one who would tell it has died before."""


class CommandResult(NamedTuple):
    """The value of a command that has ended well.

    Attributes:
        exit_code: 0.
        seconds: what it took.
        outputs: the content of its output files, by their paths in its folder.
    """

    exit_code: int
    seconds: float
    outputs: Dict[str, bytes]


class CommandFailed(RuntimeError):
    """A command that has not ended well, or has not written what it should.

    Attributes:
        message: what went wrong, with the end of what the command printed.
        exit_code: its exit code; minus a signal's number for a command that a signal has ended.
        command: the command, as the shell had it.
    """

    def __init__(self, message: str, exit_code: int = 0, command: str = "") -> None:
        super().__init__(message, exit_code, command)
        self.message, self.exit_code, self.command = message, exit_code, command

    def __str__(self) -> str:
        return self.message


def run(template: str, outputs: Sequence[str], fields: Mapping[str, Any]) -> CommandResult:
    """Run a command for an item.

    Args:
        template: the command for a shell, with fields in braces.
        outputs: paths and globs of the files that it writes, in its folder; with fields, too.
        fields: the values of the fields.

    Raises:
        CommandFailed: its exit code is not 0, or an output is missing or too large.
    """
    command = filled(template, fields)
    wanted = [filled(pattern, fields, quoted=False) for pattern in outputs]
    folder = _own_folder()
    log_size = _log_size()
    began = time.monotonic()
    exit_code = _run(command, folder)
    seconds = time.monotonic() - began
    if exit_code:
        raise CommandFailed(_failure(command, exit_code, folder, log_size), exit_code, command)
    result = CommandResult(exit_code, seconds, _contents(folder, wanted, command))
    shutil.rmtree(folder, ignore_errors=True)
    return result


def trouble_of_script(name: str, script: Mapping[str, Any]) -> str:
    """Run a script around all items of a pilot, in this process's folder; gives what went wrong, "" for nothing.

    Args:
        name: "prologue" or "epilogue".
        script: its `command`, and the `seconds` that it may take.
    """
    what, command, folder = "The " + name, str(script["command"]), os.getcwd()
    log_size = _log_size()
    try:
        exit_code = _run(command, folder, float(script["seconds"]))
    except subprocess.TimeoutExpired:
        how = "did not end within {:.0f} s, and was ended".format(script["seconds"])
        return _with_tail("{} {}: {}".format(what, how, command), log_size)
    return _failure(command, exit_code, folder, log_size, what) if exit_code else ""


# ---- the command's text


def filled(template: str, fields: Mapping[str, Any], quoted: bool = True) -> str:
    """A text with the values of its fields, each a word of the shell's."""
    pieces = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        pieces.append(literal)
        if name is not None:
            value = _shown(fields[name], spec or "", conversion)
            pieces.append(shlex.quote(value) if quoted else value)
    return "".join(pieces)


def _shown(value: Any, spec: str, conversion: Optional[str]) -> str:
    if conversion:
        value = repr(value) if conversion == "r" else str(value)
    try:
        return format(value, spec)
    except ValueError:
        if not isinstance(value, str):
            raise
        return format(float(value), spec)  # "{rate:.3f}" of a table's text


# ---- the command's process


def _run(command: str, folder: str, seconds: Optional[float] = None) -> int:
    """Run a command with its output into this process's; gives its exit code when its process group has ended.

    Raises:
        subprocess.TimeoutExpired: it has not ended within so many seconds, and was ended.
    """
    shell = shutil.which("bash") or "/bin/sh"
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    begin = ["/bin/sh", "-c", _BEGIN, "sh", shell, command]
    process = subprocess.Popen(begin, cwd=folder, stdin=subprocess.PIPE, stdout=1, stderr=2, start_new_session=True)
    with _guarded(process.pid):
        process.communicate(b"\n", seconds)
        return process.returncode


@contextlib.contextmanager
def _guarded(group: int) -> Iterator[None]:
    """End a process group after the block, and also when this process dies."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "sh", str(group)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/"
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        guard.kill()
        guard.communicate()


def _own_folder() -> str:
    """A new folder that has the project's files as links, so that relative paths lead to them."""
    parent = os.path.join(os.path.dirname(_log_path() or ""), FOLDERS) if _log_path() else None
    if parent is not None:
        os.makedirs(parent, 0o700, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="item-", dir=parent)
    here = os.getcwd()
    for name in os.listdir(here):
        os.symlink(os.path.join(here, name), os.path.join(folder, name))
    return folder


def _log_path() -> Optional[str]:
    """The file that this process writes to; None where the system does not say."""
    with contextlib.suppress(OSError):
        path = os.readlink("/proc/self/fd/1")
        return path if os.path.isfile(path) else None
    with contextlib.suppress(OSError, ImportError, AttributeError, ValueError):
        import fcntl

        raw: bytes = fcntl.fcntl(1, fcntl.F_GETPATH, bytes(1024))  # type: ignore[attr-defined] # macOS
        path = os.fsdecode(raw.rstrip(b"\0"))
        return path if os.path.isfile(path) else None
    return None


def _log_size() -> int:
    with contextlib.suppress(OSError):
        return os.fstat(1).st_size
    return 0


# ---- its end


def _failure(command: str, exit_code: int, folder: str, log_size: int, what: str = "The command") -> str:
    how = "exit code {}".format(exit_code)
    if exit_code < 0:
        how = "signal {}".format(_signal_name(-exit_code))
    elif exit_code > 128:
        how += " (a process of it had signal {})".format(_signal_name(exit_code - 128))
    return _with_tail("{} ended with {}: {}\nIts files are in {}".format(what, how, command, folder), log_size)


def _with_tail(text: str, log_size: int) -> str:
    tail = _tail(log_size)
    return "{}\nIt printed last:\n{}".format(text, tail) if tail else text + "\nIt printed nothing."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _tail(start: int) -> str:
    """The end of what was printed since the log had this size."""
    path = _log_path()
    with contextlib.suppress(OSError):
        if path is not None:
            with open(path, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(start, end - LONGEST_TAIL))
                return file.read(LONGEST_TAIL).decode("utf-8", "replace").strip()
    return ""


def _contents(folder: str, patterns: Sequence[str], command: str) -> Dict[str, bytes]:
    """The files that match the patterns, by their paths.

    Raises:
        CommandFailed: a pattern matches none, or a file is too large.
    """
    contents: Dict[str, bytes] = {}
    for pattern in patterns:
        found = _matching(folder, pattern)
        if not found:
            raise CommandFailed("The command has not written {!r}: {}".format(pattern, command), 0, command)
        for name, path in found:
            size = os.path.getsize(path)
            if size > LARGEST_OUTPUT:
                text = "{!r} has {} bytes, and an output may have {}: have the command leave it on a disk".format(
                    name, size, LARGEST_OUTPUT
                )
                raise CommandFailed(text, 0, command)
            with open(path, "rb") as file:
                contents[name] = file.read()
    return contents


def _matching(folder: str, pattern: str) -> List[Tuple[str, str]]:
    """The files of a folder that a path or a glob names: their names in it, and their paths."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True))
    exact = os.path.join(folder, pattern)
    if not paths and os.path.exists(exact):
        paths = [exact]
    return [(os.path.relpath(path, folder), path) for path in paths if os.path.isfile(path)]
