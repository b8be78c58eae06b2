"""uv on this machine: found, or put here once, at `<root>/tools/uv/<version>/uv`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.shared.files import private_folder, sync
from slurm_ray_flow.remote.shared.protocol import OperationError

Tell = Callable[[dict[str, Any]], None]

TAIL_LINES = 40
"""How many of uv's last lines stand in a failure."""
MISLEADING = {
    *("CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_PROJECT"),
    *("UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_WORKING_DIR"),
}
"""Variables of the caller that would lead uv to another place or to other packages than the digest names."""
DISK_FULL = re.compile(r"no space left on device|quota exceeded", re.IGNORECASE)
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
        [sys.executable, "-I", path_of("shared/guard.py"), *command],
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


class UvProcess:
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
            words = "\n".join(lines[-TAIL_LINES:])
            full = f"the disk of {self.folder.parent} is full: " if DISK_FULL.search(words) else ""
            raise BuildError(f"{full}uv {' '.join(arguments[:2])} ended with {code}:\n{words}")
        return lines


def _own_cache() -> Path:
    chosen = os.environ.get("UV_CACHE_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(chosen) if chosen else Path(caches) / "uv"


def _is_near(cache: Path, folder: Path) -> bool:
    """Whether a cache can be written, and lies on the file system of a folder."""
    there = next((path for path in (cache, *cache.parents) if path.exists()), cache)
    return os.access(there, os.W_OK) and there.stat().st_dev == folder.stat().st_dev


OLDEST = (0, 9)
"""The oldest uv that knows all that the builder asks of it."""
_SECONDS = 30.0


def provide(root: str, version: str, sent: str = "", tell: Callable[[Any], None] = lambda _: None) -> Dict[str, str]:
    """Where uv is; it is put there where it is not.

    Args:
        root: the root folder.
        version: which one to install.
        sent: a program that home has sent, for a machine that can't install one.
        tell: is told what happens.

    Returns:
        uv: its path.

    Raises:
        OperationError: there is none, and this machine can't install one. Its advice is to send one.
    """
    found = located(root, version)["uv"]
    if found:
        return {"uv": found}
    place = _place(root, version)
    if sent:
        return {"uv": _put(sent, place)}
    tell({"event": "line", "text": "installs uv {}".format(version)})
    return {"uv": _install(place, version)}


def located(root: str, version: str) -> Dict[str, str]:
    """Where uv is: ours, else a new enough one of the user's; "" for nowhere."""
    place = _place(root, version)
    if number(place) >= OLDEST:  # a loss of power may have left a part of it
        return {"uv": place}
    return {"uv": next((path for path in _known() if number(path) >= OLDEST), "")}


def _place(root: str, version: str) -> str:
    return os.path.join(os.path.expanduser(root), "tools", "uv", version, "uv")


def number(path: str) -> Tuple[int, ...]:
    """The version of a uv; empty where it can't start."""
    try:
        text = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.match(r"uv (\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _known() -> List[str]:
    usual = [os.path.expanduser(path) for path in ("~/.local/bin/uv", "~/.cargo/bin/uv")]
    found = [shutil.which("uv"), *usual]
    return [path for path in found if path and os.access(path, os.X_OK)]


def _put(program: str, place: str) -> str:
    """Put a program in its place, whole or not at all."""
    folder = private_folder(os.path.dirname(place))
    beside = tempfile.mkdtemp(prefix=".", dir=folder)
    try:
        copy = os.path.join(beside, "uv")
        _copy(program, copy)
        os.chmod(copy, 0o700)
        if not number(copy):
            os.unlink(program)  # the next one that is sent is sent whole
            what = "the uv that was sent does not start on this machine"
            raise OperationError(what, program, "install uv there yourself, so that it is on PATH", "environment")
        sync(beside, ["uv"])
        os.replace(copy, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def _copy(program: str, copy: str) -> None:
    """A second name where that is possible: it takes no room."""
    try:
        os.link(program, copy)
    except OSError:
        shutil.copyfile(program, copy)


def _install(place: str, version: str) -> str:
    """Have pip install it: in a virtual environment of its own, else with the pip that there is."""
    folder = private_folder(os.path.dirname(place))
    beside = tempfile.mkdtemp(prefix=".", dir=folder)
    wanted = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1", "uv==" + version]
    inside = os.path.join(beside, "bootstrap")
    words: List[str] = []
    try:
        if _ran([sys.executable, "-m", "venv", inside], words):
            _ran([os.path.join(inside, "bin", "python"), *wanted], words)
        if not os.path.exists(os.path.join(inside, "bin", "uv")):
            _ran([sys.executable, *wanted, "--target", inside], words)
        return _put(os.path.join(inside, "bin", "uv"), place)
    except FileNotFoundError:
        what = "uv can't be installed there: {}".format(" | ".join(words[-3:]) or "there is no pip")
        raise OperationError(what, place, "install uv there, or let home send its own", "environment") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _ran(command: Sequence[str], words: List[str]) -> bool:
    """Run a command to its end; of one that fails, its last words are kept."""
    with guarded(command, environment=clean_variables()) as guard:
        said = [without_credentials(line.strip()) for line in guard.stdout or () if line.strip()]
        code = guard.wait()
    if code:
        words += said[-1:]
    return code == 0


OPERATIONS: Dict[str, Any] = {"uv_tool.located": located, "uv_tool.provide": provide}
