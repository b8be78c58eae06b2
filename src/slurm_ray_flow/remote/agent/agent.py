"""Does operations for home over one SSH channel: `python -I .../agent/agent.py ROOT SECONDS`.

The agent reads messages (framing.py) from stdin and answers on stdout, each request in a thread of its own. It ends
when stdin does, or when home, which sends signs of life, has been silent for SECONDS.
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
    """Serve until the channel ends."""
    root, silence_limit = sys.argv[1], float(sys.argv[2])
    agent = AgentProcess(_private_stdout(), silence_limit)
    agent.send(greeting(root))
    threading.Thread(target=agent.end_when_silent, daemon=True).start()
    try:
        agent.serve()
    finally:
        operations.end_all()
        os._exit(0)  # without waiting for operations under way


def greeting(root: str) -> Dict[str, Any]:
    """The agent's first message: facts about this machine and user."""
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
    """A descriptor for messages to home; from now on, other output to stdout goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    return out


class AgentProcess:
    """The agent's end of the channel to home."""

    def __init__(self, out: int, silence_limit: float) -> None:
        self._out, self._silence_limit = out, silence_limit
        self._in = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self._write_lock = threading.Lock()
        self._last_message_at = time.monotonic()

    def serve(self) -> None:
        """Answer requests until stdin ends."""
        while True:
            try:
                message, data = framing.unpacked(self._read)
            except (framing.StreamEnded, OSError):
                return
            threading.Thread(target=self._answer, args=(message, data), daemon=True).start()

    def end_when_silent(self) -> None:
        """End this process when home has been silent for too long: its connection may be dead."""
        while time.monotonic() - self._last_message_at < self._silence_limit:
            time.sleep(min(1.0, self._silence_limit / 4))
        operations.end_all()
        os._exit(0)

    def send(self, message: Dict[str, Any], data: List[bytes] = []) -> None:  # noqa: B006
        """Send a message as a whole, also when other threads send."""
        with self._write_lock:
            for piece in framing.packed(message, data):
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._out, view) :]

    def _read(self, size: int) -> bytes:
        data = os.read(self._in, size)
        self._last_message_at = time.monotonic()
        return data

    def _answer(self, message: Dict[str, Any], data: bytes) -> None:
        number = message["id"]
        try:
            requests = framing.requests_unpacked(message["requests"], data)
            results = perform_all(requests, lambda report: self.send({"id": number, "tell": report}))
            texts, parts = framing.results_packed(results)
            self._send_last({"id": number, "results": texts}, parts)
        except OperationError as error:
            failure = {"what": error.what, "where": error.where, "advice": error.advice, "cause": error.cause}
            self._send_last({"id": number, "error": failure})
        except BaseException:
            self._send_last({"id": number, "crash": traceback.format_exc()})

    def _send_last(self, message: Dict[str, Any], data: List[bytes] = []) -> None:  # noqa: B006
        with contextlib.suppress(OSError):  # the channel is closed; serve() ends
            self.send(message, data)


if __name__ == "__main__":
    main()
