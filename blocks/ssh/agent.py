"""The client of the agent on a host; a request whose connection was lost is sent again."""

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

_LEASE = 90.0
"""Seconds without a message from home after which the agent ends, since a cut link may leave it behind."""
_SILENCE, _PROBE = 5.0, 10.0
"""Seconds without a greeting after which another command is tried, and the seconds for that."""
_READ = 1024 * 1024
_Answer = tuple[dict[str, Any], bytes] | None


class Agent:
    """The agent on a host, for all threads of this process.

    Args:
        connection: how to get there.
        root: the folder of everything of ours there: absolute, or "~/...".
        python: "", a path, or "module:NAME".
        label: what the user calls the cluster.
    """

    def __init__(self, connection: Connection, root: str, python: str, label: str) -> None:
        self.connection, self.label = connection, label
        self._wanted_root, self.python = bootstrap.checked_root(root), python
        self._lock = threading.Lock()
        self._conversation: _Conversation | None = None
        self._root: PurePosixPath | None = None
        connection.sessions.aside.append(self._step_aside)

    @property
    def hello(self) -> dict[str, Any]:
        """The agent's greeting: root (absolute), home, user, host, python, version, pid."""
        hello: dict[str, Any] = self._patiently(lambda conversation: conversation.hello)
        return hello

    @property
    def root(self) -> PurePosixPath:
        """The root on the host, absolute."""
        if self._root is None:
            self._root = PurePosixPath(self.hello["root"])
        return self._root

    @property
    def tools(self) -> PurePosixPath:
        """The folder that holds the package `slurm_ray_flow` of a run."""
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
        """Have operations done in order, in one round trip. Asks again if the answer was lost with its connection.

        Raises:
            SlurmRayFlowError: one could not be done, or the host can't be reached for too long.
        """
        with traced(self.label, lambda: requests_shown(requests)):
            results: list[Any] = self._patiently(lambda conversation: conversation.ask(requests, tell))
        return results

    def close(self) -> None:
        """End the agent; the next request starts it again."""
        with self._lock:
            if self._conversation is not None:
                self._conversation.close()
                self._conversation = None

    def forget(self) -> None:
        """Leave the agent to the parent of this process, which has been forked."""
        self._lock, self._conversation = threading.Lock(), None
        self.connection.sessions.aside.append(self._step_aside)

    def _step_aside(self) -> None:
        conversation = self._conversation
        if conversation is not None:
            conversation.close(aside=True)

    def _patiently(self, do: Callable[[_Conversation], Any]) -> Any:
        outage = Outage(self.connection, self.label)
        while True:
            try:
                done = do(self._opened())
            except _Aside:
                continue
            except ConnectionLost as lost:
                outage.wait(lost)
            else:
                outage.over()
                return done

    def _opened(self) -> _Conversation:
        with self._lock:
            ended = self._conversation
            if ended is None or not ended.alive:
                self._conversation = None
                if ended is not None and ended.foreign:
                    raise answers.not_ours(self.label, ended.foreign)
                ended = self._conversation = self._open()
            return ended

    def _open(self) -> _Conversation:
        command, word = bootstrap.agent_command(self._wanted_root, self.python, _LEASE)
        channel = self.connection.talk()
        try:
            return _Conversation(channel, command, word, self._wanted_root, self)
        except BaseException:
            channel.close()
            raise


def _next(answers: queue.Queue[_Answer]) -> _Answer:
    while True:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=1.0)
        interrupted()


class _Aside(ConnectionLost):
    """The agent's channel was closed, since files needed one."""


class _Conversation:
    """One channel to the agent."""

    def __init__(self, channel: Any, command: str, word: bytes, root: str, agent: Agent) -> None:
        self._channel, self._root, self._agent = channel, root, agent
        self._writing = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.Queue[_Answer]] = {}
        self._past: set[int] = set()
        self._said = bytearray()
        self.alive, self._aside, self.foreign = True, False, ""
        self._in_command, self._does_not_return = threading.Event(), False
        self.hello = self._begin(command, word)
        self._thread(self._listen)

    def ask(self, requests: Sequence[Request], tell: Callable[[Any], None]) -> list[Any]:
        """Send a request once.

        Raises:
            Lost: the channel ended before the answer came.
            SlurmRayFlowError: it could not be done.
        """
        number, label = next(self._numbers), self._agent.label
        waiting = self._waiting[number] = queue.Queue()
        tell_checked = answers.telling(tell, label)
        try:
            if not self.alive:
                raise self._ended()
            texts, data = framing.requests_packed([(name, dict(arguments)) for name, arguments in requests])
            self._write(framing.packed({"id": number, "requests": texts}, data))
            while (answer := _next(waiting)) is not None:
                message, received = answer
                if "tell" in message:
                    tell_checked(message["tell"])
                else:
                    self._agent.connection.round_trips += 1
                    return answers.results(
                        message, received, [name for name, _ in requests], label, self.hello["python"]
                    )
        finally:
            self._past.add(number)  # its answer may still come
            del self._waiting[number]
        raise self._ended()

    def close(self, aside: bool = False) -> None:
        self._aside = self._aside or aside
        self.alive = False
        with contextlib.suppress(Exception):
            self._channel.close()

    def _ended(self) -> Exception:
        return answers.not_ours(self._agent.label, self.foreign) if self.foreign else self._lost()

    def _lost(self, why: str = "the connection was lost") -> ConnectionLost:
        return _Aside(why) if self._aside else ConnectionLost(why)

    def _begin(self, command: str, word: bytes) -> dict[str, Any]:
        label, seconds = self._agent.label, self._agent.connection.limits.begin
        by_hand = self._agent.connection.endpoint.by_hand
        try:
            read = reading(self._channel, seconds)
            execute(self._channel, command)
            self._thread(self._drain)
            self._thread(self._probe)
            with message_if_slow(f"the shell on {label} has not come to our command yet; waits for its start file"):
                bootstrap.skip_noise(read, word)
            self._in_command.set()
            hello = bootstrap.greeted(read, self._send, label, self._root, self._agent.python)
        except TimeoutError:
            if not self._in_command.is_set() and not self._agent.connection.round_trips:
                raise bootstrap.does_not_return(label, by_hand) from None
            raise ConnectionLost(f"it did not answer within {seconds:.0f} s") from None
        except framing.NotAMessage as error:
            raise answers.not_ours(label, str(error)) from None
        except framing.StreamEnded as error:
            if self._does_not_return:
                raise bootstrap.does_not_return(label, by_hand) from None
            if self._agent.connection.alive:
                time.sleep(0.1)  # for its last words
                raise bootstrap.nothing_came(error, label, self._said.decode(errors="replace"), by_hand) from None
            raise ConnectionLost("the connection was lost") from None
        except SlurmRayFlowError:
            raise
        except Exception as error:  # paramiko's, whatever they are
            raise ConnectionLost(str(error) or "the connection was lost") from None
        self._channel.settimeout(None)
        return hello

    def _probe(self) -> None:
        """Try another command where the greeting is late.

        A shell that a start file has begun in place of the command ends then. One that is slow comes to it.
        """
        if self._in_command.wait(_SILENCE) or not self.alive:
            return
        with contextlib.suppress(Exception), contextlib.closing(self._agent.connection.wire().channel()) as channel:
            line, word = bootstrap.after_noise("")
            read = reading(channel, _PROBE)
            execute(channel, line)
            channel.shutdown_write()
            try:
                bootstrap.skip_noise(read, word)
            except framing.StreamEnded:
                self._does_not_return = self._agent.connection.alive
            if self._does_not_return:
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
                raise self._lost(error.strerror or str(error)) from None
            except BaseException:  # half a message is there: nothing that follows would be understood
                self.close()
                raise

    def _listen(self) -> None:
        try:
            while True:
                message, data = answers.checked_message(self._channel.recv)
                self._deliver(message, data)
        except framing.NotAMessage as error:
            self.foreign = str(error)
        except (framing.StreamEnded, OSError):
            pass
        finally:
            self.alive = False
            for waiting in list(self._waiting.values()):
                waiting.put(None)
            self.close()

    def _deliver(self, message: dict[str, Any], data: bytes) -> None:
        number = message.get("id")
        waiting = self._waiting.get(number) if isinstance(number, int) else None
        if waiting is not None:
            waiting.put((message, data))
        elif not isinstance(number, int) or number not in self._past:
            raise framing.NotAMessage("it answers what nobody asked")

    def _drain(self) -> None:
        """Read stderr, which would block the channel otherwise."""
        read = reading_errors(self._channel)
        with contextlib.suppress(OSError):
            while data := read(_READ):
                self._said += data
                del self._said[:-4096]

    def _thread(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True, name="srf-agent").start()
