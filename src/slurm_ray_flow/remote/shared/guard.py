"""Runs a command, and kills it with all its descendants when stdin ends before it does: `guard.py COMMAND...`.

The starting process keeps the other end of stdin open, so that the command never outlives it, however it ends.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.dirname(_here)))] + [
        entry for entry in sys.path if entry != _here
    ]

import subprocess
import threading
from collections.abc import Sequence

from slurm_ray_flow.remote.shared import processes


def guard(command: Sequence[str]) -> int:
    """Run a command to its end, or to the end of stdin.

    Returns:
        Its exit code.
    """
    os.umask(0o077)
    # Descendants may be in process groups of their own: as a subreaper, this process gets the orphans among them.
    processes.become_subreaper()
    guardian = os.getpid()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: processes.die_with_parent(guardian),  # noqa: PLW1509 - there is no thread yet
    )
    threading.Thread(target=_kill_when_stdin_ends, args=(child,), daemon=True).start()
    code = child.wait()
    processes.end_descendants()
    return code if code >= 0 else 128 - code


def _kill_when_stdin_ends(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    child.kill()


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
