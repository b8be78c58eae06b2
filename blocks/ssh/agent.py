"""The client of the agent on a host; after the loss of a connection it sends a request again."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from slurm_ray_flow.blocks import programs
from slurm_ray_flow.blocks.machine import Request
from slurm_ray_flow.blocks.ssh import answers, bootstrap
from slurm_ray_flow.blocks.ssh.connection import Connection, ConnectionLost, Outage
from slurm_ray_flow.blocks.ssh.files import SshTarget, bring, copy_folder, copy_from, copy_to
from slurm_ray_flow.blocks.ssh.open_connection import execute, reading, reading_errors, send_all
from slurm_ray_flow.blocks.transfer import SnapshotTarget
from slurm_ray_flow.blocks.waits import message_if_slow
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.interruption import interrupted
from slurm_ray_flow.core.trace import requests_shown, traced
from slurm_ray_flow.remote.shared import framing

_LEASE_SECONDS = 90.0
"""Seconds without a message from home after which the agent ends by itself, for the case of a cut link."""
_PROBE_AFTER_SECONDS, _PROBE_SECONDS = 5.0, 10.0
"""Seconds without a greeting after which a probe command is run, and seconds for that command."""
_READ = 1024 * 1024
_Answer = tuple[dict[str, Any], bytes] | None


class Agent:
    """The agent on a host, for all threads of this process.

    Args:
        connection: the connection to the host.
        root: the root on the host: absolute, or "~/...".
        python: "", a path, or "module:NAME".
        label: the user's name for the cluster.
    """

    def __init__(self, connection: Connection, root: str, python: str, label: str) -> None:
        self.connection, self.label = connection, label
        self._wanted_root, self.python = bootstrap.checked_root(root), python
        self._lock = threading.Lock()
        self._conversation: _Conversation | None = None
        self._root: PurePosixPath | None = None
        connection.sessions.agent_closers.append(self._close_for_transfer)

    @property
    def hello(self) -> dict[str, Any]:
        """The agent's greeting: root (absolute), home, user, host, python, version, pid."""
        hello: dict[str, Any] = self._with_reconnects(lambda conversation: conversation.hello)
        return hello

    @property
    def root(self) -> PurePosixPath:
        """The root on the host, absolute."""
        if self._root is None:
            self._root = PurePosixPath(self.hello["root"])
        return self._root

    @property
    def tools(self) -> PurePosixPath:
        """The folder on the host with the package `slurm_ray_flow` for runs."""
        return self.root / "tools" / programs.digest()

    @property
    def target(self) -> SnapshotTarget:
        """The target of snapshots."""
        return SshTarget(self, self.root)

    def copy_to(self, source: Path, path: PurePosixPath) -> None:
        """Copy a file there: whole or not at all, private, and continuing an interrupted copy."""
        copy_to(self, source, path)

    def copy_folder(self, source: Path, path: PurePosixPath) -> None:
        """Copy the content of a folder into one there, private; existing files stay."""
        copy_folder(self, source, path)

    def copy_from(self, path: PurePosixPath, target: Path, most: int) -> None:
        """Copy a file of at most so many bytes home, in the same way."""
        copy_from(self, path, target, most)

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        """Copy files of a folder into one at home."""
        bring(self, folder, names, target)

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = lambda _: None) -> list[Any]:
        """Do operations on the host in order, in one round trip; a request without an answer is sent again.

        Raises:
            SlurmRayFlowError: an operation failed, or the host can't be reached for too long.
        """
        with traced(self.label, lambda: requests_shown(requests)):
            results: list[Any] = self._with_reconnects(lambda conversation: conversation.ask(requests, tell))
        return results

    def close(self) -> None:
        """End the agent; the next request starts it again."""
        with self._lock:
            if self._conversation is not None:
                self._conversation.close()
                self._conversation = None

    def forget(self) -> None:
        """Start with no conversation after a fork: the present one is the parent process's."""
        self._lock, self._conversation = threading.Lock(), None
        self.connection.sessions.agent_closers.append(self._close_for_transfer)

    def _close_for_transfer(self) -> None:
        conversation = self._conversation
        if conversation is not None:
            conversation.close(for_transfer=True)

    def _with_reconnects(self, request: Callable[[_Conversation], Any]) -> Any:
        outage = Outage(self.connection, self.label)
        while True:
            try:
                result = request(self._open_conversation())
            except _ClosedForTransfer:
                continue
            except ConnectionLost as error:
                outage.wait(error)
            else:
                outage.over()
                return result

    def _open_conversation(self) -> _Conversation:
        with self._lock:
            conversation = self._conversation
            if conversation is None or not conversation.alive:
                self._conversation = None
                if conversation is not None and conversation.protocol_error:
                    raise answers.protocol_failure(self.label, conversation.protocol_error)
                conversation = self._conversation = self._start_conversation()
            return conversation

    def _start_conversation(self) -> _Conversation:
        command, marker = bootstrap.agent_command(self._wanted_root, self.python, _LEASE_SECONDS)
        channel = self.connection.agent_channel()
        try:
            return _Conversation(channel, command, marker, self._wanted_root, self)
        except BaseException:
            channel.close()
            raise


def _next_reply(answers: queue.Queue[_Answer]) -> _Answer:
    while True:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=1.0)
        interrupted()


class _ClosedForTransfer(ConnectionLost):
    """The agent's channel was closed, because a transfer of files needed it."""


class _Conversation:
    """One channel to the agent."""

    def __init__(self, channel: Any, command: str, marker: bytes, root: str, agent: Agent) -> None:
        self._channel, self._root, self._agent = channel, root, agent
        self._writing = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.Queue[_Answer]] = {}
        self._answered: set[int] = set()
        self._stderr = bytearray()
        self.alive, self._closed_for_transfer, self.protocol_error = True, False, ""
        self._command_began, self._shell_does_not_return = threading.Event(), False
        self.hello = self._greet(command, marker)
        self._thread(self._listen)

    def ask(self, requests: Sequence[Request], tell: Callable[[Any], None]) -> list[Any]:
        """Send a request once.

        Raises:
            ConnectionLost: the channel ended before the answer came.
            SlurmRayFlowError: an operation failed.
        """
        number, label = next(self._numbers), self._agent.label
        replies = self._waiting[number] = queue.Queue()
        checked_tell = answers.checked_tell(tell, label)
        try:
            if not self.alive:
                raise self._end_error()
            texts, data = framing.requests_packed([(name, dict(arguments)) for name, arguments in requests])
            self._write(framing.packed({"id": number, "requests": texts}, data))
            while (answer := _next_reply(replies)) is not None:
                message, received = answer
                if "tell" in message:
                    checked_tell(message["tell"])
                else:
                    self._agent.connection.round_trips += 1
                    return answers.results(
                        message, received, [name for name, _ in requests], label, self.hello["python"]
                    )
        finally:
            self._answered.add(number)  # its answer may still come
            del self._waiting[number]
        raise self._end_error()

    def close(self, for_transfer: bool = False) -> None:
        self._closed_for_transfer = self._closed_for_transfer or for_transfer
        self.alive = False
        with contextlib.suppress(Exception):
            self._channel.close()

    def _end_error(self) -> Exception:
        wrong = self.protocol_error
        return answers.protocol_failure(self._agent.label, wrong) if wrong else self._lost_error()

    def _lost_error(self, why: str = "the connection was lost") -> ConnectionLost:
        return _ClosedForTransfer(why) if self._closed_for_transfer else ConnectionLost(why)

    def _greet(self, command: str, marker: bytes) -> dict[str, Any]:
        label, start_seconds = self._agent.label, self._agent.connection.timeouts.begin
        by_hand = self._agent.connection.endpoint.by_hand
        try:
            read = reading(self._channel, start_seconds)
            execute(self._channel, command)
            self._thread(self._drain)
            self._thread(self._probe)
            with message_if_slow(f"the shell on {label} has not come to our command yet; waits for its start file"):
                bootstrap.skip_noise(read, marker)
            self._command_began.set()
            hello = bootstrap.exchange_greeting(read, self._send, label, self._root, self._agent.python)
        except TimeoutError:
            if not self._command_began.is_set() and not self._agent.connection.round_trips:
                raise bootstrap.shell_error(label, by_hand) from None
            raise ConnectionLost(f"it did not answer within {start_seconds:.0f} s") from None
        except framing.NotAMessage as error:
            raise answers.protocol_failure(label, str(error)) from None
        except framing.StreamEnded as error:
            if self._shell_does_not_return:
                raise bootstrap.shell_error(label, by_hand) from None
            if self._agent.connection.alive:
                time.sleep(0.1)  # for its last words
                raise bootstrap.no_command_error(error, label, self._stderr.decode(errors="replace"), by_hand) from None
            raise ConnectionLost("the connection was lost") from None
        except SlurmRayFlowError:
            raise
        except Exception as error:  # paramiko's, whatever they are
            raise ConnectionLost(str(error) or "the connection was lost") from None
        self._channel.settimeout(None)
        return hello

    def _probe(self) -> None:
        """Run a probe command if the greeting is late.

        A shell that a start file runs in place of the command ends with its input. A slow shell runs the probe.
        """
        if self._command_began.wait(_PROBE_AFTER_SECONDS) or not self.alive:
            return
        with contextlib.suppress(Exception), contextlib.closing(self._agent.connection.opened().channel()) as channel:
            line, marker = bootstrap.after_noise("")
            read = reading(channel, _PROBE_SECONDS)
            execute(channel, line)
            channel.shutdown_write()
            try:
                bootstrap.skip_noise(read, marker)
            except framing.StreamEnded:
                self._shell_does_not_return = self._agent.connection.alive
            if self._shell_does_not_return:
                self._channel.close()

    def _send(self, piece: bytes) -> None:
        send_all(self._channel, piece)

    def _write(self, pieces: list[bytes]) -> None:
        with self._writing:
            try:
                for piece in pieces:
                    send_all(self._channel, piece)
            except OSError as error:
                self.close()
                raise self._lost_error(error.strerror or str(error)) from None
            except BaseException:  # half a message is there: nothing that follows would be understood
                self.close()
                raise

    def _listen(self) -> None:
        try:
            while True:
                message, data = answers.checked_message(self._channel.recv)
                self._deliver(message, data)
        except framing.NotAMessage as error:
            self.protocol_error = str(error)
        except (framing.StreamEnded, OSError):
            pass
        finally:
            self.alive = False
            for replies in list(self._waiting.values()):
                replies.put(None)
            self.close()

    def _deliver(self, message: dict[str, Any], data: bytes) -> None:
        number = message.get("id")
        replies = self._waiting.get(number) if isinstance(number, int) else None
        if replies is not None:
            replies.put((message, data))
        elif not isinstance(number, int) or number not in self._answered:
            raise framing.NotAMessage("it answers what nobody asked")

    def _drain(self) -> None:
        """Read stderr, which would block the channel otherwise."""
        read = reading_errors(self._channel)
        with contextlib.suppress(OSError):
            while data := read(_READ):
                self._stderr += data
                del self._stderr[:-4096]

    def _thread(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True, name="srf-agent").start()
