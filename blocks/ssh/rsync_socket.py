"""A private Unix socket by which `remote/agent/rsync_shell.py` connects rsync's pipes with a channel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from slurm_ray_flow import remote
from slurm_ray_flow.blocks.listener import Listener
from slurm_ray_flow.blocks.ssh import bootstrap
from slurm_ray_flow.blocks.ssh.open_connection import WINDOW, execute, reading, reading_errors, send_all
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.remote.shared import framing

_PIECE = 256 * 1024
_END_SECONDS = 5.0
_BEGIN_SECONDS = 60.0
_LONGEST = 80  # the whole path of a Unix socket has at most 107 bytes


class RsyncSocket(Listener):
    """The socket that receives rsync's pipes.

    Attributes:
        lost: why the connection was lost during rsync's work; "" if it was not.
        failure: why the connection could not be opened; None if it was.
    """

    def __init__(self, path: Path, channel: Callable[[], AbstractContextManager[Any]]) -> None:
        self.lost = ""
        self.failure: SlurmRayFlowError | None = None
        self._path, self._channel = path, channel
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(path))
        listening.listen(4)
        super().__init__(listening, "srf-rsync")

    @property
    def rsync_options(self) -> tuple[str, ...]:
        """The options that lead rsync to the socket; `-s` keeps all names out of command lines."""
        program = Path(remote.__path__[0]) / "agent" / "rsync_shell.py"
        return "-s", "-e", " ".join(_quoted(text) for text in (sys.executable, "-I", str(program), str(self._path)))

    def _receive(self, visitor: socket.socket) -> None:
        with visitor, contextlib.suppress(OSError, ValueError):
            data, pipes, _, _ = socket.recv_fds(visitor, 1024 * 1024, 3)
            for pipe in pipes:
                os.set_blocking(pipe, True)  # rsync's own ends stay as rsync wants them
            try:
                while not data.endswith(b"\n"):
                    data += visitor.recv(65536) or b"\n"
                code = self._run_command(json.loads(data)["command"], pipes)
            finally:
                for pipe in pipes:
                    with contextlib.suppress(OSError):
                        os.close(pipe)
            visitor.sendall(b"%d\n" % code)

    def _run_command(self, command: str, pipes: list[int]) -> int:
        """Run a command with rsync's pipes; gives its exit code, 255 if the connection was lost."""
        try:
            with self._channel() as channel:
                return self._run_on_channel(channel, command, pipes)
        except SlurmRayFlowError as error:
            self.failure, self.lost = error, error.what
        except Exception as error:  # rsync must get an answer for any error
            self.lost = getattr(error, "strerror", None) or str(error) or "the connection was lost"
        with contextlib.suppress(OSError):
            os.write(pipes[2], f"{self.lost}\n".encode())
        return 255

    def _run_on_channel(self, channel: Any, command: str, pipes: list[int]) -> int:
        line, word = bootstrap.after_noise(f"umask 077\nexec {command}\n")
        read = reading(channel, _BEGIN_SECONDS)
        execute(channel, line)
        errors = self._thread(lambda: _copy_errors(channel, pipes[2]))
        bootstrap.skip_noise(read, word)
        channel.settimeout(None)
        self._thread(lambda: _copy_stdin(channel, os.dup(pipes[0])))
        try:
            _copy_output(channel.recv, pipes[1])
        except OSError:  # rsync has gone: nobody waits for its exit code
            return 255
        errors.join(_END_SECONDS)
        if not channel.exit_status_ready() and not channel.status_event.wait(_END_SECONDS):
            raise framing.StreamEnded("the connection was lost")
        code: int = channel.recv_exit_status()
        if code < 0:
            raise framing.StreamEnded("the connection was lost")
        return code


@contextlib.contextmanager
def opened(channel: Callable[[], AbstractContextManager[Any]]) -> Iterator[RsyncSocket]:
    """A socket as long as the block lasts.

    Args:
        channel: opens a new channel of the connection.
    """
    short_enough = len(tempfile.gettempdir()) < _LONGEST
    folder = Path(tempfile.mkdtemp(prefix="srf-", dir=None if short_enough else "/tmp"))  # noqa: S108 - it makes a private one
    try:
        rsync_socket = RsyncSocket(folder / "socket", channel)
        try:
            yield rsync_socket
        finally:
            rsync_socket.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_errors(channel: Any, pipe: int) -> None:
    with contextlib.suppress(OSError):
        _copy_output(reading_errors(channel), pipe)


def _copy_output(read: Callable[[int], bytes], pipe: int) -> None:
    while data := read(WINDOW):
        view = memoryview(data)
        while view:
            view = view[os.write(pipe, view) :]


def _copy_stdin(channel: Any, pipe: int) -> None:
    try:
        with contextlib.suppress(OSError, EOFError):
            while data := os.read(pipe, _PIECE):
                send_all(channel, data)
            channel.shutdown_write()
    finally:
        os.close(pipe)  # rsync would write to it for as long as it is open


def _quoted(text: str) -> str:
    """A text quoted for rsync's `-e`: a quote within quotes is doubled."""
    return '"' + text.replace('"', '""') + '"' if set(text) & set(" \t\"'") else text
