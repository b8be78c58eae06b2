"""What is installed into an environment: how uv is told, and what it holds then."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from slurm_ray_flow.remote import room
from slurm_ray_flow.remote.uv_program import BuildError, Uv

SIZES = "sizes.json"
"""Beside whole.json: bytes and files of each package, by name."""
_IN_FILES = ("--index-url", "--extra-index-url", "--find-links", "--no-index", "--no-binary", "--only-binary")


def make_room(uv: Uv, spec: Mapping[str, Any], environment: Path, beside: Path, disk: Path) -> None:
    """See that what would be installed has room, before any of it is downloaded.

    Raises:
        BuildError: it has none; or uv can't find the packages.
    """
    if not spec["requirements"]:
        return
    arguments = _arguments(spec, environment, beside)
    packages = room.planned(uv.run("pip", "install", "--dry-run", *arguments, quiet=True))
    held, known = _known(Path(os.path.expanduser(spec["root"])) / "environments")
    need = room.needed(packages, {**known, **(spec.get("sizes") or {})}, {} if spec.get("packed") else held)
    missing = room.shortage(need, disk)
    if missing:
        raise BuildError(f"{missing}, in {disk}")


def install(uv: Uv, spec: Mapping[str, Any], environment: Path, beside: Path) -> None:
    """Install what the spec asks for."""
    if spec["requirements"]:
        # An archive's files can't be completed later, and those of a node's scratch folder are soon gone.
        compiled = ["--compile-bytecode"] if spec.get("packed") else []
        uv.run("pip", "install", *compiled, *_arguments(spec, environment, beside))


def _arguments(spec: Mapping[str, Any], environment: Path, beside: Path) -> list[str]:
    options, arguments = split_options(spec.get("options", ()))
    wanted = _private_file(beside / "requirements.txt", [*options, *spec["requirements"]])
    if spec.get("constraints"):
        arguments += ["--constraint", _private_file(beside / "constraints.txt", spec["constraints"])]
    return ["--python", str(environment / "bin" / "python"), "--requirement", wanted, *arguments]


def _known(environments: Path) -> tuple[dict[str, str], dict[str, Sequence[int]]]:
    """What the environments there hold ("numpy==2.0"), and what each package takes."""
    held: dict[str, str] = {}
    sizes: dict[str, Sequence[int]] = {}
    for folder in environments.glob("[!.]*"):
        try:
            packages = json.loads((folder / "whole.json").read_text(encoding="utf-8"))["packages"]
            held.update((f"{name}=={version}", "") for name, version in packages.items())
            sizes.update(json.loads((folder / SIZES).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, AttributeError):
            continue
    return held, sizes


def split_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options that stand in the file, where secrets belong, and those that uv knows as arguments alone."""
    lines: list[str] = []
    arguments: list[str] = []
    for option in options:
        name, _, value = option.partition(" ")
        if name == "--pre":
            arguments += ["--prerelease", "allow"]
        elif name == "--trusted-host":
            arguments += ["--allow-insecure-host", value]
        elif name in _IN_FILES:
            lines.append(option)
        else:
            arguments += [name, value] if value else [name]
    return lines, arguments


def _private_file(path: Path, lines: Sequence[str]) -> str:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return str(path)


def installed_packages(environment: Path) -> dict[str, str]:
    """Version by name (PEP 503) of what an environment holds."""
    found = {item.metadata["Name"]: item.version for item in _installed(environment)}
    return {_normal(name): found[name] for name in sorted(found)}


def write_sizes(environment: Path, folder: Path) -> None:
    """Note what each package of an environment takes: the next builder judges by it whether there is room."""
    sizes = {_normal(item.metadata["Name"]): size_of(item) for item in _installed(environment)}
    (folder / SIZES).write_text(json.dumps(sizes), encoding="utf-8")


def size_of(item: metadata.Distribution) -> tuple[int, int]:
    """Bytes and files of a package, as its own record says."""
    sizes = [line.rpartition(",")[2].strip() for line in (item.read_text("RECORD") or "").splitlines()]
    return sum(int(size) for size in sizes if size.isdigit()), len(sizes)


def _installed(environment: Path) -> list[metadata.Distribution]:
    folders = sorted({str(path.resolve()) for path in environment.glob("lib*/python*/site-packages")})
    return [item for item in metadata.distributions(path=folders) if item.metadata["Name"]]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
