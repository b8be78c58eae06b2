"""uv as the builder of environments runs it: each of its lines told, and nothing of it outlives its builder.

Its cache lies on the file system of the environments, so that they hold hard links to it and not copies: the user's own
cache where that is so, else one in the root.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from slurm_ray_flow.remote.files import private_folder

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


def clean_variables() -> dict[str, str]:
    """This process's variables, without those that would mislead uv or a Python."""
    return {name: value for name, value in os.environ.items() if name not in MISLEADING}


@contextlib.contextmanager
def guarded(
    command: Sequence[str], folder: Optional[Path] = None, environment: Optional[dict[str, str]] = None, lock: int = -1
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends the command and all that it started when our end of its stdin closes, however that happens.

    Args:
        command: program and arguments; its stderr counts as output.
        folder: where it works.
        environment: its variables.
        lock: a descriptor that it shares, so that nobody takes the lock while the command still writes.
    """
    guard = subprocess.Popen(
        [sys.executable, "-I", os.path.join(os.path.dirname(os.path.abspath(__file__)), "guard.py"), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env=environment,
        start_new_session=True,
        pass_fds=() if lock < 0 else (lock,),
    )
    try:
        yield guard
    finally:
        guard.stdin.close()  # type: ignore[union-attr]
        guard.stdout.close()  # type: ignore[union-attr]
        guard.wait()


class Uv:
    """uv, run so that nothing of it outlives this process.

    Args:
        program: its path.
        folder: where it works, on the file system of what it makes.
        lock: a descriptor that it shares, or None.
        tell: is given each of its lines.
        cache: a cache folder for where the user's own lies on another file system.
    """

    def __init__(self, program: str, folder: Path, lock: int | None, tell: Tell, cache: Optional[Path] = None) -> None:
        self.program, self.folder, self.lock, self.tell = program, folder, lock, tell
        self._environment = clean_variables()
        if cache is not None and not _is_near(_own_cache(), folder):
            self.always_own_cache(cache)

    def always_own_cache(self, cache: Path) -> None:
        """Use this cache, wherever the user's own lies."""
        self._environment["UV_CACHE_DIR"] = private_folder(str(cache))

    def run(self, *arguments: str, quiet: bool = False) -> list[str]:
        """Run it to its end.

        Args:
            arguments: after those that all its commands get.
            quiet: whether its lines are not told.

        Returns:
            Its lines.

        Raises:
            BuildError: it refused.
        """
        command = [self.program, "--no-progress", "--color", "never", *arguments]
        lines: list[str] = []
        with guarded(command, self.folder, self._environment, -1 if self.lock is None else self.lock) as guard:
            for line in guard.stdout:  # type: ignore[union-attr]
                lines.append(without_credentials(line.rstrip("\n")))
                if not quiet:
                    self.tell({"event": "line", "text": lines[-1]})
            code = guard.wait()
        if code:
            raise BuildError(f"uv {' '.join(arguments[:2])} ended with {code}:\n" + "\n".join(lines[-TAIL_LINES:]))
        return lines


def _own_cache() -> Path:
    chosen = os.environ.get("UV_CACHE_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(chosen) if chosen else Path(caches) / "uv"


def _is_near(cache: Path, folder: Path) -> bool:
    """Whether a cache can be written, and lies on the file system of a folder."""
    there = next((path for path in (cache, *cache.parents) if path.exists()), cache)
    return os.access(there, os.W_OK) and there.stat().st_dev == folder.stat().st_dev
