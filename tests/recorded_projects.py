"""Projects as users write them, read from tests/recorded/requirements."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slurm_ray_flow.core.errors import DependencyError
from slurm_ray_flow.core.requirements import Requirements, wanted
from slurm_ray_flow.core.requirements.locks import read_toml
from slurm_ray_flow.core.requirements.model import Uv


@dataclasses.dataclass
class Scanned:
    name: str
    version: str
    origin: str | None = None


def recorded(tools: bool = False) -> list[Path]:
    """Those for which uv is asked, or the others."""
    files = sorted((Path(__file__).parent / "recorded" / "requirements").glob("*.toml"))
    return [path for path in files if read_toml(path).get("tools", False) is tools]


def no_uv(arguments: Sequence[str], folder: Path) -> str:
    """What core gets in place of uv, where it needs none."""
    raise AssertionError(f"uv is asked in {folder}: {arguments}")


def write(project: Path, files: dict[str, str]) -> Path:
    project.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return project


def read(case: dict[str, Any], folder: Path, uv: Uv) -> Requirements:
    project = write(folder / "project", case["files"])
    environment, python = case.get("environment", "auto"), case.get("python", "3.11")
    scanned = [Scanned(name, version) for name, version in case.get("imports", {}).items()]
    return wanted(environment, project, scanned, python=python, uv=uv, always=case.get("always", []))


def check(recorded: Path, folder: Path, uv: Uv) -> None:
    """Read a project, and compare with what was expected by hand."""
    case = read_toml(recorded)
    if "error" in case:
        with pytest.raises(DependencyError) as caught:
            read(case, folder, uv)
        assert [words for words in case["error"] if words not in str(caught.value)] == []
        assert "hunter2" not in str(caught.value)
        return
    found = read(case, folder, uv)
    places = {"{project}": (folder / "project").as_uri(), "{outside}": (folder / "outside").as_uri()}
    places["{path}"] = str(folder / "project")
    text = json.dumps(case["wanted"])
    for name, value in places.items():
        text = text.replace(name, value)
    expected = {"constraints": [], "options": [], **json.loads(text)}
    told = expected.pop("notes", [])
    assert {name: (list(v) if isinstance(v := getattr(found, name), tuple) else v) for name in expected} == expected
    assert [words for words in told if words not in " ".join(found.notes)] == []
    assert bool(found.notes) is bool(told)
    assert Requirements.from_json(found.to_json()) == found
    assert "hunter2" not in repr(found)
    assert "from-the-shell" not in repr(found)
