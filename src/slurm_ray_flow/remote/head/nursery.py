"""The nursery: a process on each host that has imported Ray (0.7 s of a processor), and is forked for new processes.

`ray_node.py` forks the nursery off before it starts Ray. It listens on a socket in Ray's private folder. Whoever wants
a process sends its descriptors and a wish as JSON: module (its `main` gets the arguments), arguments, environment,
folder, executable, and orphan (whether it becomes a child of the nearest subreaper). The answer is its pid.
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

DOOR = "SRF_NURSERY"
"""The variable that names the socket."""
PATIENCE = 10.0
_READ_AT_START = ("PYTHON", "LD_")
"""Variables that begin so count when a program starts, and not later."""


def fork_process(module: str, descriptors: List[int], **wish: Any) -> Optional[Tuple[int, socket.socket]]:
    """Have the nursery fork a process.

    Args:
        module: what it is to run.
        descriptors: its stdin, stdout and stderr; the numbers that others have there are appended to its arguments.
        wish: the rest of the wish; its environment names the socket.

    Returns:
        Its pid, and a connection that ends when the process does, unless it is an orphan. None where it was not made:
        there is no nursery, or that has another interpreter or other variables that count at the start.
    """
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(OSError, KeyError, ValueError):
        door.settimeout(PATIENCE)
        door.connect(wish["environment"][DOOR])
        socket.send_fds(door, [b"\n"], descriptors)
        door.sendall(json.dumps({**wish, "module": module}).encode())
        door.shutdown(socket.SHUT_WR)
        return int(door.recv(16)), door
    door.close()
    return None


def begin(path: str) -> Optional[Callable[[], None]]:
    """Import Ray, and fork the nursery off. None in this process; in each that the nursery makes, what that is to do.

    Args:
        path: where its socket is to be.
    """
    # Ray reads these when it is imported. A worker of no job takes tasks of any; this process ends with the raylet.
    os.environ.update(RAY_JOB_ID="ffffffff", RAY_RAYLET_PID=str(os.getpid()))
    importlib.import_module("ray")
    del os.environ["RAY_JOB_ID"], os.environ["RAY_RAYLET_PID"]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(path)
    door.listen(128)
    parent = os.getpid()
    if os.fork():
        door.close()
        return None
    processes.die_with_parent(parent)
    importlib.import_module("slurm_ray_flow.remote.shared.pickler")
    return _serve(door)


def _serve(door: socket.socket) -> Callable[[], None]:
    """Make what is asked for; returns in what is made."""
    aborted: List[int] = []

    def reap(*_: Any) -> None:
        aborted.extend(pid for pid, code in processes.reap().items() if code == -signal.SIGABRT)

    signal.signal(signal.SIGCHLD, reap)
    while True:
        asker, _ = door.accept()
        descriptors: List[int] = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            asker.settimeout(PATIENCE)
            descriptors = list(socket.recv_fds(asker, 1, 8)[1])
            wish = json.load(asker.makefile("rb"))
            # Ray aborts where it can't be forked: workers start by themselves from then on.
            if not aborted and _can_be_forked(wish) and _fork(wish["orphan"]):
                door.close()
                asker.sendall(str(os.getpid()).encode())
                return functools.partial(_become, wish, descriptors, asker)
        asker.close()
        for descriptor in descriptors:
            os.close(descriptor)


def _can_be_forked(wish: Dict[str, Any]) -> bool:
    def at_start(variables: Any) -> Dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_READ_AT_START)}

    return wish["executable"] == sys.executable and at_start(wish["environment"]) == at_start(os.environ)


def _fork(orphan: bool) -> bool:
    """Whether this is the new process; an orphan has its new parent already."""
    if os.fork():
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if orphan:
        between = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == between:
            time.sleep(0.001)
    return True


def _become(wish: Dict[str, Any], descriptors: List[int], asker: socket.socket) -> None:
    if wish["orphan"]:
        asker.close()
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(wish["environment"])
    os.chdir(wish["folder"])
    arguments = [*wish["arguments"], *map(str, descriptors[3:])]
    sys.argv[1:] = arguments
    importlib.import_module(wish["module"]).main(arguments)
