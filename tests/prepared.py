"""Python programs that need not import everything anew: `srf`, and users' scripts.

To import Prefect and what goes with it costs a process three seconds of processor, which is more than most tests want
to see of it. So one process a test session has imported it, and each program is a copy of that one (fork), with
arguments, variables, folder, outputs, process id and end as from a shell. What the copy can't show is left to a real
process: other settings of Python, and how a program starts for real, which test_cli.py sees.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from hangs import STACKS
from shared_server import OWNER

SRF = str(Path(sys.executable).with_name("srf"))
READ_AT_START = ("PREFECT_LOGGING", "PYTHON", "HOME", "PATH", "LD_", "LC_", "LANG", "SSL_", "http", "HTTP")
"""What the variables begin with that are read when Python or Prefect is imported."""
ENVIRONMENT = dict(os.environ)
"""The variables before any test: the process begins in the first test that wants it, which may have set others."""

PARENT = """
import ctypes, faulthandler, json, os, signal, socket, sys, tempfile, types, runpy, warnings, gc
import slurm_ray_flow, slurm_ray_flow.cli.main, slurm_ray_flow.flows.launch
import paramiko, prefect, prefect.artifacts, prefect.blocks.core, prefect.client.orchestration, prefect.flow_engine
import slurm_ray_flow.blocks.clusters, slurm_ray_flow.tasks.check_up, slurm_ray_flow.tasks.clean_up

CLONE_PARENT, CLONE = 0x8000, {"x86_64": 56, "aarch64": 220}[os.uname().machine]
libc, python = ctypes.CDLL(None), ctypes.pythonapi

def fork():  # a child of this one's parent, which waits for it as for any other of its children
    python.PyOS_BeforeFork()
    pid = libc.syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    (python.PyOS_AfterFork_Parent if pid else python.PyOS_AfterFork_Child)()
    return pid

def serve(line):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    while True:
        size, files, _, _ = socket.recv_fds(line, 8, 3)
        if not size:
            os._exit(0)
        asked = b""
        while len(asked) < int.from_bytes(size, "big"):
            asked += line.recv(1 << 20)
        pid = fork()
        if pid == 0:
            line.close()
            return json.loads(asked), files
        for number in files:
            os.close(number)
        line.sendall(pid.to_bytes(8, "big", signed=True))

def become(asked, files):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, opened in enumerate(files):
        os.dup2(opened, number)
        os.close(opened)
    settings = {name: value for name, value in asked["environment"].items() if name.startswith("PREFECT_")}
    changed = settings != {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None
    if changed:
        entered.append(prefect.context.root_settings_context())
        entered[0].__enter__()
    os.chdir(asked["folder"])
    if asked["session"]:
        os.setsid()
    if asked["stacks"]:  # hangs.py asks for them
        faulthandler.register(signal.SIGUSR2, open(os.path.join(asked["stacks"], str(os.getpid())), "w"))

entered = []  # else it would be left at once

def begin(words):
    while words[0] == "-W":
        warnings.simplefilter(words[1])
        del words[:2]
    sys.argv = words[1:] if words[0] == "-m" else words[:]
    if words[0] == "-m":
        sys.path[0] = os.getcwd()
        return lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    if words[0] == "srf":
        del sys.path[0]
        sys.argv[0] = os.path.join(os.path.dirname(sys.executable), "srf")
        return slurm_ray_flow.cli.main.main
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-c":
        source, name, sys.path[0] = words[1], "<string>", ""
        sys.argv = ["-c", *words[2:]]
    else:
        name = os.path.abspath(words[0])
        source, sys.path[0] = open(name, "rb").read(), os.path.dirname(name)
        module.__file__ = name
    module.__spec__, module.__builtins__ = None, __builtins__
    return lambda: exec(compile(source, name, "exec"), module.__dict__)

def own(error, trace):  # its frames, without those of this file
    while trace and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    return trace

asked, files = serve(socket.socket(fileno=int(sys.argv[1])))
become(asked, files)
shows = sys.excepthook
sys.excepthook = lambda kind, error, trace: shows(kind, error.with_traceback(own(error, trace)), own(error, trace))
program = begin(asked["words"])
program()
"""


class Program(subprocess.Popen[str]):
    """A program of Python's whose imports are done. Its arguments are those of Popen, as far as tests need them."""

    def _execute_child(self, arguments: Any, *rest: Any) -> None:
        """Start the program, as Popen asks: with the descriptors that it has made."""
        folder, environment, ends, session = rest[4], rest[5], rest[9:15], rest[20]
        given = {**os.environ} if environment is None else dict(environment)
        words = _words(list(map(os.fspath, arguments)))
        read, written, told = ends[0], ends[3], ends[5]
        asked = {"words": words, "environment": given, "folder": os.fspath(folder or os.getcwd()), "session": session}
        asked["stacks"] = _stacks()
        with open(os.devnull, "rb") as nothing:
            files = [
                nothing.fileno() if read == -1 else read,
                1 if written == -1 else written,
                2 if told == -1 else told,
            ]
            self.pid = _prepared().start(asked, files)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


def start(command: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a program: prepared, where that shows no difference, or for real."""
    words = list(map(os.fspath, command))
    environment = options.get("env") or os.environ
    prepared = words[0] in (sys.executable, SRF) and _same(environment) and not _isolated(words)
    made = Program if prepared else subprocess.Popen
    return made(words, **{"text": True, **options})


def run(command: Any, *, timeout: float = 180, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its outputs are kept."""
    pipe = subprocess.PIPE
    process = start(command, **{"stdout": pipe, "stderr": pipe, **options})
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _stacks() -> str:
    """The folder for the stacks of programs that hang; empty outside of the tests."""
    folder = os.environ.get(OWNER) and os.path.join(os.environ[OWNER], STACKS)
    if folder:
        os.makedirs(folder, 0o700, exist_ok=True)
    return folder or ""


def _words(command: list[str]) -> list[str]:
    return ["srf", *command[1:]] if command[0] == SRF else command[1:]


def _isolated(words: list[str]) -> bool:
    return words[0] == sys.executable and words[1].startswith("-") and words[1] not in ("-c", "-m", "-W")


def _same(environment: Any) -> bool:
    """Whether what is read at the start is as it was when the prepared process began."""
    return _read_at_start(environment) == _read_at_start(ENVIRONMENT)


def _read_at_start(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


class _Parent:
    """The process that has imported everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", PARENT, str(theirs.fileno())],
                env=ENVIRONMENT,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)

    def start(self, asked: dict[str, Any], files: list[int]) -> int:
        """Start a program with these files as its standard ones; its process id."""
        data = json.dumps(asked).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        with self._lock:
            self._line.sendmsg([len(data).to_bytes(8, "big")], rights)
            self._line.sendall(data)
            answer = self._line.recv(8)
        if len(answer) != 8:
            raise RuntimeError("the process that has imported everything has ended")
        return int.from_bytes(answer, "big", signed=True)

    def close(self) -> None:
        self._line.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)


_parents: list[_Parent] = []
_one = threading.Lock()


def _prepared() -> _Parent:
    with _one:
        if not _parents:
            _parents.append(_Parent())
        return _parents[0]
