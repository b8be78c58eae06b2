"""uv as the builder of environments runs it: each of its lines told, and nothing of it outlives its builder."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Tell = Callable[[dict[str, Any]], None]

TAIL_LINES = 40
"""How many of uv's last lines stand in a failure."""
MISLEADING = {
    *("CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_PROJECT"),
    *("UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_WORKING_DIR"),
}
"""Variables of the caller that would lead uv to another place or to other packages than the digest names."""
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


class BuildError(Exception):
    """The environment could not be built. The message ends with uv's own words."""


def without_credentials(text: str) -> str:
    """A text whose addresses name no user and no password."""
    return _CREDENTIALS.sub("***@", text)


class Uv:
    """uv, run so that nothing of it outlives this process."""

    def __init__(self, program: str, folder: Path, lock: int | None, tell: Tell) -> None:
        self.program, self.folder, self.lock, self.tell = program, folder, lock, tell

    def run(self, *arguments: str) -> None:
        """Run it to its end, telling each of its lines.

        Raises:
            BuildError: it refused.
        """
        command = [self.program, "--no-progress", "--color", "never", *arguments]
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        with self._guarded(command) as guard:
            for line in guard.stdout:  # type: ignore[union-attr]
                text = without_credentials(line.rstrip("\n"))
                tail.append(text)
                self.tell({"event": "line", "text": text})
            code = guard.wait()
        if code:
            raise BuildError(f"uv {' '.join(arguments[:2])} ended with {code}:\n" + "\n".join(tail))

    @contextlib.contextmanager
    def _guarded(self, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """A process that ends uv and all that it started when our end of its stdin closes, however that happens.

        It shares the lock, so that nobody takes it while uv still writes.
        """
        guard = subprocess.Popen(
            [sys.executable, "-I", os.path.join(os.path.dirname(os.path.abspath(__file__)), "guard.py"), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in MISLEADING},
            start_new_session=True,
            pass_fds=() if self.lock is None else (self.lock,),
        )
        try:
            yield guard
        finally:
            guard.stdin.close()  # type: ignore[union-attr]
            guard.stdout.close()  # type: ignore[union-attr]
            guard.wait()
