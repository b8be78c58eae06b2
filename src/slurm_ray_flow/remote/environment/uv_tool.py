"""uv on this machine: an installed one, or one that is put at `<root>/tools/uv/<version>/uv`."""

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
"""The number of uv's last lines in an error."""
MISLEADING = {
    *("CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_PROJECT"),
    *("UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_WORKING_DIR"),
}
"""Variables that would make uv use other folders, or packages that the digest does not name."""
DISK_FULL = re.compile(r"no space left on device|quota exceeded", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


class BuildError(Exception):
    """The environment could not be built. The message ends with uv's last lines."""


def without_credentials(text: str) -> str:
    """The text without user names and passwords in its addresses."""
    return _CREDENTIALS.sub("***@", text)


def clean_variables() -> dict[str, str]:
    """This process's variables, without those that would mislead uv or a Python."""
    return {name: value for name, value in os.environ.items() if name not in MISLEADING}


@contextlib.contextmanager
def guarded(
    command: Sequence[str], folder: Optional[Path] = None, environment: Optional[dict[str, str]] = None, lock: int = -1
) -> Iterator[subprocess.Popen[str]]:
    """A process of guard.py, which kills the command and its descendants when this end of its stdin is closed.

    Args:
        command: program and arguments; its stderr goes to stdout.
        folder: its working directory.
        environment: its variables.
        lock: a descriptor for it to inherit, so that the lock is held while the command may write; -1 for none.
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
    """uv, in processes that don't outlive this one.

    Args:
        program: uv's path.
        folder: its working directory, on the file system of the files that it makes.
        lock: a descriptor for it to inherit, or None.
        tell: gets each line of its output as an event.
        cache: a cache folder that replaces the user's own if that is on another file system.
    """

    def __init__(self, program: str, folder: Path, lock: int | None, tell: Tell, cache: Optional[Path] = None) -> None:
        self.program, self.folder, self.lock, self.tell = program, folder, lock, tell
        self._environment = clean_variables()
        if cache is not None and not _is_on_file_system_of(_own_cache(), folder):
            self.always_own_cache(cache)

    def always_own_cache(self, cache: Path) -> None:
        """Use this cache instead of the user's own."""
        self._environment["UV_CACHE_DIR"] = private_folder(str(cache))

    def run(self, *arguments: str) -> list[str]:
        """Run uv to its end.

        Args:
            arguments: a command of uv's and its arguments.

        Returns:
            The lines of its output.

        Raises:
            BuildError: uv failed.
        """
        command = [self.program, "--no-progress", "--color", "never", *arguments]
        lines: list[str] = []
        with guarded(command, self.folder, self._environment, -1 if self.lock is None else self.lock) as guard:
            for line in guard.stdout:  # type: ignore[union-attr]
                lines.append(without_credentials(line.rstrip("\n")))
                self.tell({"event": "line", "text": lines[-1]})
            code = guard.wait()
        if code:
            tail = "\n".join(lines[-TAIL_LINES:])
            full = f"the disk of {self.folder.parent} is full: " if DISK_FULL.search(tail) else ""
            raise BuildError(f"{full}uv {' '.join(arguments[:2])} ended with {code}:\n{tail}")
        return lines


def _own_cache() -> Path:
    chosen = os.environ.get("UV_CACHE_DIR")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(chosen) if chosen else Path(caches) / "uv"


def _is_on_file_system_of(cache: Path, folder: Path) -> bool:
    """Whether a cache can be written to, and is on the file system of a folder."""
    existing = next((path for path in (cache, *cache.parents) if path.exists()), cache)
    return os.access(existing, os.W_OK) and existing.stat().st_dev == folder.stat().st_dev


OLDEST = (0, 9)
"""The oldest uv with all features that the builder uses."""
START_SECONDS = 30.0


def provide(root: str, version: str, sent: str = "", tell: Callable[[Any], None] = lambda _: None) -> Dict[str, str]:
    """Find uv, or install it.

    Args:
        root: the root folder.
        version: the version to install.
        sent: a uv that home has sent, for a machine that can't install one.
        tell: gets an event before an installation.

    Returns:
        uv: its path.

    Raises:
        OperationError: there is no uv, and this machine can't install one. The advice is to send one.
    """
    existing = located(root, version)["uv"]
    if existing:
        return {"uv": existing}
    target = _own_path(root, version)
    if sent:
        return {"uv": _install_program(sent, target)}
    tell({"event": "line", "text": "installs uv {}".format(version)})
    return {"uv": _install_by_pip(target, version)}


def located(root: str, version: str) -> Dict[str, str]:
    """The path of uv: the root's own, else one of the user's that is new enough; "" for none."""
    own = _own_path(root, version)
    if number(own) >= OLDEST:  # after a loss of power it may be incomplete
        return {"uv": own}
    return {"uv": next((path for path in _installed_programs() if number(path) >= OLDEST), "")}


def _own_path(root: str, version: str) -> str:
    return os.path.join(os.path.expanduser(root), "tools", "uv", version, "uv")


def number(path: str) -> Tuple[int, ...]:
    """The version of a uv; empty if it can't start."""
    try:
        text = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=START_SECONDS,
            check=False,
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.match(r"uv (\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else ()


def _installed_programs() -> List[str]:
    usual_paths = [os.path.expanduser(path) for path in ("~/.local/bin/uv", "~/.cargo/bin/uv")]
    paths = [shutil.which("uv"), *usual_paths]
    return [path for path in paths if path and os.access(path, os.X_OK)]


def _install_program(program: str, target: str) -> str:
    """Put a program at its path by a rename, so that it is never incomplete."""
    folder = private_folder(os.path.dirname(target))
    temporary = tempfile.mkdtemp(prefix=".", dir=folder)
    try:
        copy = os.path.join(temporary, "uv")
        _link_or_copy(program, copy)
        os.chmod(copy, 0o700)
        if not number(copy):
            os.unlink(program)  # so that home sends it again
            what = "the uv that was sent does not start on this machine"
            raise OperationError(what, program, "install uv there yourself, so that it is on PATH", "environment")
        sync(temporary, ["uv"])
        os.replace(copy, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _link_or_copy(program: str, copy: str) -> None:
    """Make a hard link, which takes no disk space; where that fails, a copy."""
    try:
        os.link(program, copy)
    except OSError:
        shutil.copyfile(program, copy)


def _install_by_pip(target: str, version: str) -> str:
    """Have pip install uv: that of a new virtual environment, else that of this Python."""
    folder = private_folder(os.path.dirname(target))
    temporary = tempfile.mkdtemp(prefix=".", dir=folder)
    arguments = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1", "uv==" + version]
    bootstrap = os.path.join(temporary, "bootstrap")
    errors: List[str] = []
    try:
        if _run([sys.executable, "-m", "venv", bootstrap], errors):
            _run([os.path.join(bootstrap, "bin", "python"), *arguments], errors)
        if not os.path.exists(os.path.join(bootstrap, "bin", "uv")):
            _run([sys.executable, *arguments, "--target", bootstrap], errors)
        return _install_program(os.path.join(bootstrap, "bin", "uv"), target)
    except FileNotFoundError:
        what = "uv can't be installed there: {}".format(" | ".join(errors[-3:]) or "there is no pip")
        raise OperationError(what, target, "install uv there, or let home send its own", "environment") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(command: Sequence[str], errors: List[str]) -> bool:
    """Run a command to its end; returns whether it succeeded. `errors` gets the last line of one that failed."""
    with guarded(command, environment=clean_variables()) as guard:
        lines = [without_credentials(line.strip()) for line in guard.stdout or () if line.strip()]
        code = guard.wait()
    if code:
        errors += lines[-1:]
    return code == 0


OPERATIONS: Dict[str, Any] = {"uv_tool.located": located, "uv_tool.provide": provide}
