"""uv at home: what it says about a project's requirements."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.shell import Completed, inherited, run
from slurm_ray_flow.blocks.store import short_digest
from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.requirements import hide_credentials
from slurm_ray_flow.remote.environments import NO_REGISTRY
from slurm_ray_flow.remote.uv_program import MISLEADING

SECONDS = 3600.0
"""How long a download or a build may take."""
_LARGE = 1 << 20


def ask_uv(arguments: Sequence[str], folder: Path | None = None) -> str:
    """What uv prints when it is run in a folder; tools that it runs get this Python.

    Raises:
        DependencyError: it refused; has its last words.
    """
    variables = {name: value for name, value in inherited().items() if name not in {*MISLEADING, "UV_LOCKED"}}
    command = [find_uv_bin(), "--no-progress", "--color", "never", *arguments]
    done = run(command, timeout=SECONDS, env={**variables, "UV_PYTHON": sys.executable}, cwd=folder)
    if not done.ok:
        raise failure(
            f"uv can't tell what is required (uv {' '.join(arguments[:2])})", done, str(folder or "this machine")
        )
    return done.stdout


def ask_uv_once(arguments: Sequence[str], folder: Path) -> str:
    """The same; what a tool says of a project is remembered until a file beside its pyproject.toml changes.

    uv remembers metadata by fewer files still: building it takes seconds, and an index.
    """
    if arguments[0] != "tool":
        return ask_uv(arguments, folder)
    files = sorted(path for path in (*folder.glob("*"), *folder.glob("requirements*/*")) if path.is_file())
    seen = [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files if path.stat().st_size < _LARGE
    ]
    place = home() / "cache" / "wanted" / f"{short_digest(json.dumps([*arguments, seen]))}.txt"
    with contextlib.suppress(OSError):
        return place.read_text(encoding="utf-8")
    text = ask_uv(arguments, folder)
    write_whole(place, text.encode())
    return text


def failure(what: str, done: Completed, where: str = "this machine") -> DependencyError:
    """The error that tells a command's last words."""
    words = hide_credentials(done.stderr.strip() or done.stdout.strip())
    advice = "see what is named there, and change it; or write the packages into a requirements.txt"
    if NO_REGISTRY.search(words):
        advice = "see to this machine's network, or to the proxy that leads to its package index (HTTPS_PROXY); "
        advice += 'or have the cluster get packages by itself, if it can: wheels="index" on its block'
    return DependencyError(f"{what}:\n" + "\n".join(words.splitlines()[-15:]), where=where, advice=advice)
