"""uv on this machine: found, or put here once, at `<root>/tools/uv/<version>/uv`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Callable, Dict, List, Sequence, Tuple

from slurm_ray_flow.remote.errors import OperationError
from slurm_ray_flow.remote.files import private_folder, sync
from slurm_ray_flow.remote.uv_program import clean_variables, guarded, without_credentials

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


OPERATIONS: Dict[str, Any] = {"located": located, "provide": provide}
