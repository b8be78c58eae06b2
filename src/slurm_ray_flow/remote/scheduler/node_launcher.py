"""The workers on the other nodes of an allocation, as the head sees them, and the launchers that start them.

A launcher starts them by child processes of the head. Messages to the workers go through their stdin, and messages of
the workers come from their stdout: this needs no shared files, and the workers end with the head.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.shared.events import RunFiles

START_LIMIT = 180.0
SILENT_SECONDS = 40.0
"""Seconds of silence after which a node counts as lost; workers send a sign of life every few seconds."""
EXIT_SECONDS = 5.0
USAGE_SECONDS = 2.0


class NodeLauncher:
    """Starts a program on other nodes; a subclass has the command, which must pass each argument unchanged."""

    variables: ClassVar[Dict[str, str]] = {}
    """Variables for the command, in addition to the head's own."""

    def commands(self, names: List[str], program: List[str]) -> Dict[Tuple[str, ...], List[str]]:
        """The commands that start the program on these nodes, by the nodes of each; by default one for each node."""
        return {(name,): self.command(name, program) for name in names}

    def command(self, name: str, program: List[str]) -> List[str]:
        """The command that starts the program on one node."""
        raise NotImplementedError

    def start(self, names: List[str], program: List[str]) -> List[Channel]:
        """Start the program on all of these nodes."""
        channels = []
        for nodes, command in self.commands(names, program).items():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.variables}
            )
            channels.append(Channel(process, nodes))
        return channels


class Srun(NodeLauncher):
    """One step of Slurm: a task on each of the other nodes, with all resources of the job there.

    The failure of a node does not end the tasks on others.
    """

    variables: ClassVar[Dict[str, str]] = {"SLURM_CPU_BIND": "none", "SLURM_EXPORT_ENV": "ALL", "SRUN_DEBUG": "3"}

    def commands(self, names: List[str], program: List[str]) -> Dict[Tuple[str, ...], List[str]]:
        count = len(names)
        step = [
            "srun", "--relative=1", "--nodes={0}".format(count), "--ntasks={0}".format(count), "--ntasks-per-node=1",
            "--cpu-bind=none", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--unbuffered", "--mpi=none",
            "--input=all",
        ]  # fmt: skip
        return {tuple(names): [*step, *program]}


class Oarsh(NodeLauncher):
    """A shell of OAR's on each of the other nodes, in the job's share of it; all of it ends with the job.

    A shell there reads the words again, and has none of the head's variables. They come as lines of its stdin, so that
    no list of processes shows them.
    """

    _READ = """while IFS= read -r line && [ "$line" != . ]; do lines=$lines$line'
'; done; eval "$lines"; exec "$@\""""

    def command(self, name: str, program: List[str]) -> List[str]:
        return ["oarsh", name, *map(shlex.quote, ["sh", "-c", self._READ, "sh", *program])]

    def start(self, names: List[str], program: List[str]) -> List[Channel]:
        channels = super().start(names, program)
        for channel in channels:
            channel.send(_exports(os.environ).encode("utf-8", "surrogateescape"))
        return channels


_OWN_VARIABLES = ("OAR_", "SSH_", "HOME", "HOSTNAME", "LOGNAME", "OLDPWD", "PWD", "SHELL", "SHLVL", "TERM", "USER", "_")
"""Prefixes of the variables that each node sets itself."""


def _exports(environment: Mapping[str, str]) -> str:
    """Lines of shell that set the variables; a line with a dot is the end. (No value has such a line but in quotes.)"""
    lines = [
        "export {}={}\n".format(name, shlex.quote(value))
        for name, value in environment.items()
        if re.match(r"[A-Za-z_]\w*$", name) and not name.startswith(_OWN_VARIABLES) and "\n.\n" not in value
    ]
    return "".join(lines) + ".\n"


class Channel:
    """One process of a launcher, with the pipes to the workers of some nodes."""

    def __init__(self, process: "subprocess.Popen[bytes]", names: Tuple[str, ...]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.names = process, names
        self.reaped = False
        self._in, self._out, self._rest = process.stdin, process.stdout.fileno(), b""
        os.set_blocking(self._out, False)

    def send(self, line: bytes) -> None:
        """Send a line to all its workers."""
        with contextlib.suppress(OSError):
            self._in.write(line)
            self._in.flush()

    def lines(self) -> List[bytes]:
        """The lines that its workers have written since the last call."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._out, 65536)
                if not data:
                    break
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return lines

    def close(self) -> None:
        """Close the workers' stdin, which ends them."""
        with contextlib.suppress(OSError):
            self._in.close()

    def has_ended(self) -> bool:
        """Whether its process has ended; its exit code is left for `processes.reap`."""
        unreaped = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return self.reaped or os.waitid(os.P_PID, self.process.pid, unreaped) is not None
        except ChildProcessError:
            return True


class NodeWorkers:
    """The workers on the other nodes.

    Args:
        run: the allocation's run.
        names: the scheduler's names of the nodes.
        launcher: starts the workers.

    Attributes:
        ready: the message of each node that is ready, by its name.
        lost: the reason of each node's loss, by its name.
        starved: whether a node is lost for want of memory.
    """

    def __init__(self, run: RunFiles, names: List[str], launcher: NodeLauncher) -> None:
        self.names = names
        self.ready: Dict[str, Dict[str, Any]] = {}
        self.lost: Dict[str, str] = {}
        self.starved = False
        self.usage: List[Dict[str, Any]] = []
        self._new_losses: List[str] = []
        self._last_message_at: Dict[str, float] = {}
        self._address_sent = False
        self._start_time = time.monotonic()
        program = [sys.executable, "-I", path_of("head/worker.py"), run.root, run.id]
        self._channels = launcher.start(names, program)

    @property
    def pids(self) -> List[int]:
        return [channel.process.pid for channel in self._channels]

    def prepare(self, token: str, folder: str) -> None:
        """Have the workers prepare Ray before the address of Ray's head is known."""
        self._send({"token": token, "folder": folder})

    def join(self, address: str) -> None:
        """Send the address of Ray's head to the workers, once."""
        if not self._address_sent:
            self._address_sent = True
            self._send({"address": address, "head": address.rpartition(":")[0]})

    def call_begins(self) -> None:
        """Have the workers measure the use of a call."""
        self._send({"call": "begins"})

    def uses(self) -> List[Dict[str, Any]]:
        """The call's use of each node, without nodes that don't answer within `USAGE_SECONDS`."""
        self.usage.clear()
        self._send({"call": "is over"})
        deadline = time.monotonic() + USAGE_SECONDS
        while len(self.usage) < len(self.names) - len(self.lost) and time.monotonic() < deadline:
            self.read_messages()
            time.sleep(0.005)
        return list(self.usage)

    def ended(self, pid: int, code: int) -> None:
        """Note the end of a launcher's process: its nodes are lost."""
        for channel in self._channels:
            if channel.process.pid == pid:
                channel.process.returncode, channel.reaped = code, True
                self.read_messages()
                for name in channel.names:
                    if name not in self.lost:
                        self._lose(name, "its step ended with {}".format(code))

    def listen(self) -> List[str]:
        """Read the workers' messages; returns the names of the nodes that were lost since the last call."""
        self.read_messages()
        losses, self._new_losses = self._new_losses, []
        return losses

    def read_messages(self) -> None:
        """Read the workers' messages, and keep the names of lost nodes for the next `listen`."""
        for channel in self._channels:
            for line in channel.lines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._receive(json.loads(line), channel.names)
        now = time.monotonic()
        for name, last in list(self._last_message_at.items()):
            if now - last > SILENT_SECONDS and name not in self.lost:
                self._lose(name, "it has been silent for {:.0f} s".format(SILENT_SECONDS))

    @property
    def all_ready(self) -> bool:
        return len(self.ready) == len(self.names)

    @property
    def failure(self) -> Optional[str]:
        """The reason why some worker can't become ready; None while all may become so, and when all are."""
        if self.all_ready:
            return None
        if self.lost:
            return "Ray did not start on {}".format("; on ".join("{}: {}".format(*loss) for loss in self.lost.items()))
        if time.monotonic() - self._start_time > START_LIMIT:
            missing = ", ".join(name for name in self.names if name not in self.ready)
            return "Ray was not ready on {} after {:.0f} s.".format(missing, START_LIMIT)
        return None

    def end(self) -> None:
        """Have the workers end in order, and wait a moment for them; others end with the job."""
        for channel in self._channels:
            channel.close()
        deadline = time.monotonic() + EXIT_SECONDS
        while not all(channel.has_ended() for channel in self._channels) and time.monotonic() < deadline:
            self.listen()
            time.sleep(0.01)
        self.listen()

    def _receive(self, message: Dict[str, Any], names: Tuple[str, ...]) -> None:
        name, what = str(message["node"]), message["what"]
        if name not in names:
            return
        self._last_message_at[name] = time.monotonic()
        if what == "ready":
            self.ready[name] = message
        elif what == "ended":
            self.starved = self.starved or bool(message.get("starved"))
            self._lose(name, str(message["why"]))
        elif what == "used":
            self.usage.append(message["use"])

    def _lose(self, name: str, why: str) -> None:
        self.lost[name] = why
        self._last_message_at.pop(name, None)
        self._new_losses.append(name)

    def _send(self, message: Dict[str, Any]) -> None:
        for channel in self._channels:
            channel.send(json.dumps(message).encode() + b"\n")
