"""The nursery: a process on each host that has imported Ray (0.7 s of a processor), and forks new processes.

`ray_node.py` forks the nursery before it starts Ray. The nursery listens on a socket in Ray's private folder. A client
sends descriptors and a request as JSON: module (its `main` gets the arguments), arguments, environment, folder,
executable, and orphan (whether the process becomes a child of the nearest subreaper). The answer is its pid.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.shared import processes

SOCKET_VARIABLE = "SRF_NURSERY"
"""The variable that has the path of the socket."""
ANSWER_SECONDS = 10.0
_START_PREFIXES = ("PYTHON", "LD_")
"""Prefixes of variables that only have an effect when a program starts."""


def fork_process(module: str, descriptors: List[int], **request: Any) -> Optional[Tuple[int, socket.socket]]:
    """Have the nursery fork a process.

    Args:
        module: the module that it runs.
        descriptors: its stdin, stdout and stderr; the process's numbers of further ones are added to its arguments.
        request: the rest of the request; its environment has the path of the socket.

    Returns:
        The pid, and a connection that ends when the process does, unless it is an orphan. None if there is no nursery,
        or one with another interpreter or with other variables that have an effect at the start.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(OSError, KeyError, ValueError):
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(request["environment"][SOCKET_VARIABLE])
        socket.send_fds(connection, [b"\n"], descriptors)
        connection.sendall(json.dumps({**request, "module": module}).encode())
        connection.shutdown(socket.SHUT_WR)
        return int(connection.recv(16)), connection
    connection.close()
    return None


def begin(path: str) -> Optional[Callable[[], None]]:
    """Import Ray, and fork the nursery. Returns None in this process, and in each fork of the nursery its program.

    Args:
        path: the path of its socket.
    """
    # Ray's import reads these. A worker without a job takes tasks of any job; this process ends with the raylet.
    os.environ.update(RAY_JOB_ID="ffffffff", RAY_RAYLET_PID=str(os.getpid()))
    importlib.import_module("ray")
    del os.environ["RAY_JOB_ID"], os.environ["RAY_RAYLET_PID"]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(128)
    parent = os.getpid()
    if os.fork():
        listener.close()
        return None
    processes.die_with_parent(parent)
    importlib.import_module("slurm_ray_flow.remote.shared.pickler")
    return _serve(listener)


def _serve(listener: socket.socket) -> Callable[[], None]:
    """Fork a process for each request; returns only in such a process, with its program."""
    aborted: List[int] = []

    def reap(*_: Any) -> None:
        aborted.extend(pid for pid, code in processes.reap().items() if code == -signal.SIGABRT)

    signal.signal(signal.SIGCHLD, reap)
    while True:
        client, _ = listener.accept()
        descriptors: List[int] = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            client.settimeout(ANSWER_SECONDS)
            descriptors = list(socket.recv_fds(client, 1, 8)[1])
            request = json.load(client.makefile("rb"))
            # After an abort, Ray can't be forked here: from then on clients start processes themselves.
            if not aborted and _can_be_forked(request) and _fork(request["orphan"]):
                listener.close()
                client.sendall(str(os.getpid()).encode())
                return functools.partial(_run_program, request, descriptors, client)
        client.close()
        for descriptor in descriptors:
            os.close(descriptor)


def _can_be_forked(request: Dict[str, Any]) -> bool:
    def prefixed(variables: Any) -> Dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_START_PREFIXES)}

    return request["executable"] == sys.executable and prefixed(request["environment"]) == prefixed(os.environ)


def _fork(orphan: bool) -> bool:
    """Fork; returns whether this is the new process, when it has its final parent."""
    if os.fork():
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if orphan:
        intermediate = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == intermediate:
            time.sleep(0.001)
    return True


def _run_program(request: Dict[str, Any], descriptors: List[int], client: socket.socket) -> None:
    if request["orphan"]:
        client.close()
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    arguments = [*request["arguments"], *map(str, descriptors[3:])]
    sys.argv[1:] = arguments
    importlib.import_module(request["module"]).main(arguments)
