"""Processes of this machine: running commands, and unique identities of processes (pid, start, boot).

Several hosts or containers may share a home. A process of another host can't be seen from here; see `elsewhere`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.trace import traced
from slurm_ray_flow.remote.shared import liveness, processes
from slurm_ray_flow.remote.shared.files import write_whole
from slurm_ray_flow.remote.shared.protocol import OperationError

PRIVATE = 0o077
"""The umask of started processes: the files that they write are their user's alone."""
_NAMES_FILE = "password_variables"
_started: list[subprocess.Popen[bytes]] = []  # kept, so that ended processes are reaped


@dataclass(frozen=True)
class Completed:
    """The exit code of a command (negative: the signal that ended it) and its output."""

    command: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.exit_code == 0


def withhold(name: str) -> None:
    """Keep a variable that may hold a password from all processes that are started from now on."""
    processes.WITHHELD.add(name)
    remembered = _remembered_names()
    if name not in remembered:
        with contextlib.suppress(OSError, OperationError):
            write_whole(str(home() / _NAMES_FILE), "\n".join(sorted({*remembered, name})).encode())


def withheld() -> set[str]:
    """The names of the variables that may hold a password of a cluster which this user has used."""
    processes.WITHHELD.update(_remembered_names())
    return processes.WITHHELD


def _remembered_names() -> set[str]:
    with contextlib.suppress(OSError):
        return set((home() / _NAMES_FILE).read_text().split())
    return set()


def inherited() -> dict[str, str]:
    """This process's environment without the withheld variables."""
    withheld()
    return processes.inherited()


def with_cluster_passwords(left_out: str) -> dict[str, str]:
    """This process's environment with the passwords of clusters, and no others.

    Args:
        left_out: the start of the names of further variables that are left out.
    """
    of_clusters = withheld()
    names = [name for name in os.environ if not name.endswith("_PASSWORD") or name in of_clusters]
    return {name: os.environ[name] for name in names if not name.startswith(left_out)}


def run(
    command: Sequence[str],
    *,
    timeout: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = PRIVATE,
) -> Completed:
    """Run a command to its end and capture its output; a failing command raises no error.

    Args:
        command: program and arguments. They are visible to all users of the machine: no secrets here.
        timeout: seconds after which the command and its children are killed.
        stdin: the bytes of its stdin.
        env: its whole environment; None for `inherited`.
        cwd: its working directory.
        umask: its umask; -1 for that of this process.

    Raises:
        SlurmRayFlowError: the program is missing, or took longer than `timeout`.
    """
    pipe = subprocess.PIPE
    with (
        traced("here", lambda: shlex.join(command)),
        _popen(command, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, umask=umask) as process,
    ):
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except BaseException as problem:
            _kill_group(process)
            if isinstance(problem, subprocess.TimeoutExpired):
                raise _timeout_error(command, timeout) from None
            raise
    return Completed(
        tuple(command), process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace")
    )


def start(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    descriptors: Sequence[int] = (),
) -> int:
    """Start a process that outlives this one and its terminal; gives its process id.

    Args:
        command: program and arguments. They are visible to all users of the machine: no secrets here.
        log: the file for its output, which is appended; readable by its owner alone.
        env: its whole environment; None for `inherited`.
        cwd: its working directory.
        descriptors: descriptors of this process that it inherits.

    Raises:
        SlurmRayFlowError: the program is missing.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        with traced("here", lambda: f"starts {shlex.join(command)}"):
            process = _popen(
                command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor,
                descriptors=descriptors,
            )  # fmt: skip
    finally:
        os.close(descriptor)
    _started[:] = [earlier for earlier in _started if earlier.poll() is None]
    _started.append(process)
    return process.pid


def follow(command: Sequence[str], tell: Callable[[str], None]) -> int:
    """Run a command to its end, and pass on each line of its stdout and stderr as it comes.

    An exception here, such as Ctrl-C, terminates the command and its children.

    Returns:
        Its exit code; negative for the signal that ended it.

    Raises:
        SlurmRayFlowError: the program is missing.
    """
    pipe, stderr = subprocess.PIPE, subprocess.STDOUT
    with (
        traced("here", lambda: shlex.join(command)),
        _popen(command, env=None, cwd=None, stdin=subprocess.DEVNULL, stdout=pipe, stderr=stderr) as process,
    ):
        assert process.stdout is not None, "its output is a pipe"
        try:
            for line in process.stdout:
                tell(line.decode(errors="replace").rstrip("\n"))
            return process.wait()
        except BaseException:
            _terminate_group(process)
            raise


class SocketProcess:
    """A process with a socket as its stdin and stdout."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def exit_code(self, within: float) -> int | None:
        """Its exit code, after a wait of so many seconds at most; None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(within)
        return None

    def end(self) -> None:
        """End it and its children: by SIGTERM, and after some seconds by SIGKILL."""
        if self._process.poll() is None:
            _terminate_group(self._process)


def start_on_socket(command: Sequence[str], descriptor: int, errors: int) -> SocketProcess:
    """Start a process with a socket as its stdin and stdout.

    Args:
        command: program and arguments. They are visible to all users of the machine: no secrets here.
        descriptor: the descriptor of the socket.
        errors: the descriptor of the file for its stderr.

    Raises:
        SlurmRayFlowError: the program is missing.
    """
    with traced("here", lambda: f"starts {shlex.join(command)}"):
        process = _popen(command, env=None, cwd=None, stdin=descriptor, stdout=descriptor, stderr=errors, umask=-1)
    return SocketProcess(process)


def _terminate_group(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        _kill_group(process)


def _popen(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    stdin: int,
    stdout: int,
    stderr: int,
    umask: int = PRIVATE,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            env=inherited() if env is None else env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            umask=umask,
            pass_fds=descriptors,
        )
    except OSError as problem:
        raise SlurmRayFlowError(
            f"The program {command[0]} can't be started: {problem.strerror}.",
            where=str(cwd or Path.cwd()),
            advice="Install it, or put its folder on PATH.",
        ) from problem


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _timeout_error(command: Sequence[str], timeout: float) -> SlurmRayFlowError:
    return SlurmRayFlowError(
        f"{command[0]} did not end within {timeout:g} s and was killed.",
        where=" ".join(command),
        advice="Try the command by hand; a slow disk or network may need more time.",
    )


@dataclass(frozen=True)
class Process:
    """The unique identity of a process: `boot_id` has the boot, the namespace of pids and the host's name."""

    pid: int
    started: int
    boot_id: str


@cache
def boot_id() -> str:
    """The scope of this process's pids: the boot of the machine, the pid namespace, and the host's name."""
    host = socket.gethostname().replace(" ", "-")
    return f"{processes.boot_id()} {processes.namespace() or '-'} {host or '-'}"


def elsewhere(noted_scope: str) -> bool:
    """Whether a process with this noted `boot_id` is on another host, or in another pid namespace.

    Older versions noted the boot alone, which counts as a boot of this host.
    """
    return liveness.elsewhere(_scope_parts(noted_scope), _scope_parts(boot_id()))


def _scope_parts(noted: str) -> dict[str, str]:
    return dict(zip(("boot_id", "namespace", "host"), noted.split(" "), strict=False))


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None for no process, or a zombie."""
    started = processes.started(pid)
    return None if started is None else Process(pid, started, boot_id())


def this_process() -> Process:
    """The identity of this process."""
    process = identify(os.getpid())
    assert process is not None, "a process that runs can be seen"
    return process


def alive(process: Process) -> bool:
    """Whether a process runs on this host; False for a zombie, and for a process that is `elsewhere`."""
    return alive_as_noted(vars(process)) is True


def alive_as_noted(noted: Mapping[str, Any]) -> bool | None:
    """Whether the process with this noted `pid`, `started` and `boot_id` still runs; None if it is `elsewhere`."""
    identity = {name: noted[name] for name in ("pid", "started")}
    identity |= {name: noted[name] for name in ("namespace", "host") if name in noted}  # as a head notes them
    return liveness.noted_alive({**identity, **_scope_parts(str(noted["boot_id"]))})


def end(process: Process, *, patience: float) -> bool:
    """End a process by SIGTERM, and after `patience` seconds by SIGKILL; True when it is gone."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        if not alive(process):
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        if wait_gone(process, seconds):
            return True
    return False


def wait_gone(process: Process, seconds: float) -> bool:
    """Wait for the end of a process, at most so many seconds; True when it has ended."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            return False
        _reap(process.pid)
        time.sleep(0.02)
    return True


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
