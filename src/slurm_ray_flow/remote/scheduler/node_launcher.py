"""The other nodes of an allocation, as the head sees them, and what starts Ray's workers there.

Whatever starts them is a child of the head. What the workers must know goes through its stdin, what they say comes by
its stdout, so nothing of it needs a file that all nodes see, and all of it ends with the head.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any, ClassVar, Dict, List, Optional, Tuple

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.shared.events import RunFiles

START_LIMIT = 180.0
SILENT_SECONDS = 40.0
"""A worker gives a sign of life every few seconds; one that is silent for so long is cut off."""
LEAVE_SECONDS = 5.0
USED_SECONDS = 2.0


class NodeLauncher:
    """Starts a program on other nodes; a kind of it says by which command. Each word arrives as it is."""

    variables: ClassVar[Dict[str, str]] = {}
    """What the command gets besides the head's own variables."""

    def commands(self, names: List[str], program: List[str]) -> Dict[Tuple[str, ...], List[str]]:
        """The commands that start it on all of these nodes, by the nodes that each one serves: one for each."""
        return {(name,): self.command(name, program) for name in names}

    def command(self, name: str, program: List[str]) -> List[str]:
        """What starts it on one node."""
        raise NotImplementedError

    def start(self, names: List[str], program: List[str]) -> List[Channel]:
        """Start it on all of these nodes."""
        started = []
        for served, command in self.commands(names, program).items():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.variables}
            )
            started.append(Channel(process, served))
        return started


class Srun(NodeLauncher):
    """One step of Slurm: a task on each of the other nodes, with all that the job has there.

    A node that fails ends no other one.
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


class Channel:
    """One process that a launcher has started: the way to the workers of some nodes, and back."""

    def __init__(self, process: "subprocess.Popen[bytes]", names: Tuple[str, ...]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.names = process, names
        self.over = False
        self._in, self._out, self._rest = process.stdin, process.stdout.fileno(), b""
        os.set_blocking(self._out, False)

    def say(self, line: bytes) -> None:
        """Have all its workers read a line."""
        with contextlib.suppress(OSError):
            self._in.write(line)
            self._in.flush()

    def lines(self) -> List[bytes]:
        """What its workers have said since the last time."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._out, 65536)
                if not data:
                    break
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return lines

    def close(self) -> None:
        """Have its workers leave."""
        with contextlib.suppress(OSError):
            self._in.close()

    def has_ended(self) -> bool:
        """Whether its process has, without taking its exit code from whoever waits for that."""
        try:
            return self.over or os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True


class NodeWorkers:
    """The workers on the other nodes.

    Args:
        run: the allocation's run.
        names: the nodes as the scheduler calls them.
        launcher: what starts them.

    Attributes:
        ready: what each node that is ready has said, by its name.
        lost: why each node is lost, by its name.
        starved: one of them is lost for want of memory.
    """

    def __init__(self, run: RunFiles, names: List[str], launcher: NodeLauncher) -> None:
        self.names = names
        self.ready: Dict[str, Dict[str, Any]] = {}
        self.lost: Dict[str, str] = {}
        self.starved = False
        self.used: List[Dict[str, Any]] = []
        self._news: List[str] = []
        self._heard: Dict[str, float] = {}
        self._told = False
        self._began = time.monotonic()
        program = [sys.executable, "-I", path_of("head/worker.py"), run.root, run.id]
        self._channels = launcher.start(names, program)

    @property
    def pids(self) -> List[int]:
        return [channel.process.pid for channel in self._channels]

    def prepare(self, token: str, folder: str) -> None:
        """Have the workers make ready for a head that is still to come."""
        self._say({"token": token, "folder": folder})

    def join(self, address: str) -> None:
        """Tell the workers where Ray is; once."""
        if not self._told:
            self._told = True
            self._say({"address": address, "head": address.rpartition(":")[0]})

    def call_begins(self) -> None:
        """Have the workers look at what a call uses."""
        self._say({"call": "begins"})

    def uses(self) -> List[Dict[str, Any]]:
        """What the call used on each node; those that don't say so soon are left out."""
        self.used.clear()
        self._say({"call": "is over"})
        deadline = time.monotonic() + USED_SECONDS
        while len(self.used) < len(self.names) - len(self.lost) and time.monotonic() < deadline:
            self.listen_later()
            time.sleep(0.005)
        return list(self.used)

    def ended(self, pid: int, code: int) -> None:
        """Note that a process of the launcher has ended: the nodes that it served and were not lost before are now."""
        for channel in self._channels:
            if channel.process.pid == pid:
                channel.process.returncode, channel.over = code, True
                self.listen_later()
                for name in channel.names:
                    if name not in self.lost:
                        self._lose(name, "its step ended with {}".format(code))

    def listen(self) -> List[str]:
        """Hear what the workers say; the names of the nodes that have been lost since the last time."""
        self.listen_later()
        news, self._news = self._news, []
        return news

    def listen_later(self) -> None:
        """Hear what the workers say, and keep the news for whoever listens next."""
        for channel in self._channels:
            for line in channel.lines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._hear(json.loads(line), channel.names)
        now = time.monotonic()
        for name, heard in list(self._heard.items()):
            if now - heard > SILENT_SECONDS and name not in self.lost:
                self._lose(name, "it has been silent for {:.0f} s".format(SILENT_SECONDS))

    @property
    def all_ready(self) -> bool:
        return len(self.ready) == len(self.names)

    @property
    def failure(self) -> Optional[str]:
        """Why the workers will not all be ready; None while they may be, and once they have been."""
        if self.all_ready:
            return None
        if self.lost:
            return "Ray did not start on {}".format("; on ".join("{}: {}".format(*one) for one in self.lost.items()))
        if time.monotonic() - self._began > START_LIMIT:
            missing = ", ".join(name for name in self.names if name not in self.ready)
            return "Ray was not ready on {} after {:.0f} s.".format(missing, START_LIMIT)
        return None

    def end(self) -> None:
        """Have the workers leave in order, for a moment; whoever is left ends with the job."""
        for channel in self._channels:
            channel.close()
        deadline = time.monotonic() + LEAVE_SECONDS
        while not all(channel.has_ended() for channel in self._channels) and time.monotonic() < deadline:
            self.listen()
            time.sleep(0.01)
        self.listen()

    def _hear(self, said: Dict[str, Any], names: Tuple[str, ...]) -> None:
        name, what = str(said["node"]), said["what"]
        if name not in names:
            return
        self._heard[name] = time.monotonic()
        if what == "ready":
            self.ready[name] = said
        elif what == "ended":
            self.starved = self.starved or bool(said.get("starved"))
            self._lose(name, str(said["why"]))
        elif what == "used":
            self.used.append(said["use"])

    def _lose(self, name: str, why: str) -> None:
        self.lost[name] = why
        self._heard.pop(name, None)
        self._news.append(name)

    def _say(self, message: Dict[str, Any]) -> None:
        for channel in self._channels:
            channel.say(json.dumps(message).encode() + b"\n")
