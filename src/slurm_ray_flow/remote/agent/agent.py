"""Does operations for home over one SSH channel: `python -I .../remote/agent.py ROOT SECONDS`.

Reads messages (framing.py) from stdin, answers on stdout, each request in a thread of its own. It lives as long
as the channel: it ends when stdin does, or when home, which gives signs of life, has been silent for SECONDS.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import threading
import time
import traceback
from typing import Any, Dict, List

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from slurm_ray_flow.remote.agent import operations
from slurm_ray_flow.remote.agent.operations import perform_all
from slurm_ray_flow.remote.shared import framing
from slurm_ray_flow.remote.shared.protocol import OperationError


def main() -> None:
    """Serve until home has gone."""
    root, patience = sys.argv[1], float(sys.argv[2])
    agent = AgentProcess(_private_stdout(), patience)
    agent.send(greeting(root))
    threading.Thread(target=agent.watch, daemon=True).start()
    try:
        agent.serve()
    finally:
        operations.end_all()
        os._exit(0)  # operations still under way wait for nobody


def greeting(root: str) -> Dict[str, Any]:
    """What home wants to know at once."""
    return {
        "hello": {
            "root": root,
            "home": os.path.expanduser("~"),
            "user": _user(),
            "host": socket.gethostname(),
            "python": sys.executable,
            "version": platform.python_version(),
            "pid": os.getpid(),
        }
    }


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _private_stdout() -> int:
    """Nothing but messages goes to home: what else is printed goes to stderr, and what is started reads nothing."""
    out = os.dup(1)
    os.dup2(2, 1)
    return out


class AgentProcess:
    """The conversation with home."""

    def __init__(self, out: int, patience: float) -> None:
        self._out, self._patience = out, patience
        self._in = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self._writing = threading.Lock()
        self._heard = time.monotonic()

    def serve(self) -> None:
        """Take requests until there are no more."""
        while True:
            try:
                message, data = framing.unpacked(self._read)
            except (framing.StreamEnded, OSError):
                return
            threading.Thread(target=self._answer, args=(message, data), daemon=True).start()

    def watch(self) -> None:
        """End when home has been silent for too long: its link may be dead without a word."""
        while time.monotonic() - self._heard < self._patience:
            time.sleep(min(1.0, self._patience / 4))
        operations.end_all()
        os._exit(0)

    def send(self, message: Dict[str, Any], data: List[bytes] = []) -> None:  # noqa: B006
        """Send a whole message, whoever else sends."""
        with self._writing:
            for piece in framing.packed(message, data):
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._out, view) :]

    def _read(self, size: int) -> bytes:
        data = os.read(self._in, size)
        self._heard = time.monotonic()
        return data

    def _answer(self, message: Dict[str, Any], data: bytes) -> None:
        number = message["id"]
        try:
            requests = framing.requests_unpacked(message["requests"], data)
            results = perform_all(requests, lambda said: self.send({"id": number, "tell": said}))
            texts, parts = framing.results_packed(results)
            self._send_last({"id": number, "results": texts}, parts)
        except OperationError as error:
            words = {"what": error.what, "where": error.where, "advice": error.advice, "cause": error.cause}
            self._send_last({"id": number, "error": words})
        except BaseException:
            self._send_last({"id": number, "crash": traceback.format_exc()})

    def _send_last(self, message: Dict[str, Any], data: List[bytes] = []) -> None:  # noqa: B006
        with contextlib.suppress(OSError):  # home has gone; serve() ends
            self.send(message, data)


if __name__ == "__main__":
    main()
