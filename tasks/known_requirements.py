"""What a project wants, remembered between processes: reading a lock and its graph takes some 50 ms."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.store import short_digest
from slurm_ray_flow.blocks.uv import ask_uv_once
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.requirements import Wanted, hide_credentials, wanted
from slurm_ray_flow.core.requirements.choose import FILES
from slurm_ray_flow.core.requirements.locks import lock_of
from slurm_ray_flow.tasks.scan_imports import Code


def known_wanted(environment: str | tuple[str, ...], code: Code, python: str, always: Sequence[str]) -> Wanted:
    """`wanted`, from what an earlier launch found where nothing that it depends on has changed.

    Raises:
        DependencyError: the wanted packages can't be read, or exclude each other.
    """
    place = _place(environment, code, python, always)
    if place is not None:
        with contextlib.suppress(OSError, ValueError):
            return Wanted.from_json(place.read_text())
    scan = code.scan()
    found = wanted(
        environment,
        Path(code.project),
        scan.distributions,
        python=python,
        uv=ask_uv_once,
        always=always,
        travelling=[file.path for file in scan.files],
    )
    text = found.to_json()
    # What it depends on beside the files below is not watched, and index options may hold a password.
    if place is not None and not (found.contents or found.options or found.beyond) and hide_credentials(text) == text:
        write_whole(place, text.encode())
    return found


def _place(environment: str | tuple[str, ...], code: Code, python: str, always: Sequence[str]) -> Path | None:
    """Named by all that the answer depends on; None where that is not known before reading."""
    if environment != "auto":
        return None
    project = Path(code.project)
    lock = lock_of(project)
    parts = [code.digest, python, *always, str(lock), _content(lock), _content(project / "pyproject.toml")]
    there = [name for name in FILES if (project / name).exists()]
    return home() / "cache" / "wanted" / f"{short_digest(json.dumps([parts, there, _installed()]))}.json"


def _content(file: Path | None) -> str:
    try:
        if file is None:
            return ""
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def _installed() -> list[tuple[str, int]]:
    """The folders of installed packages, with the time when something was last installed or removed there."""
    folders = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    return [(str(folder), folder.stat().st_mtime_ns) for folder in folders if folder.is_dir()]
