"""What is installed into an environment: how uv is told, and what it holds then."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator, Optional

from slurm_ray_flow.remote.environment.uv_tool import UvProcess
from slurm_ray_flow.remote.shared.leftovers import note_owner
from slurm_ray_flow.remote.shared.protocol import OperationError

_IN_FILES = ("--index-url", "--extra-index-url", "--find-links", "--no-index", "--no-binary", "--only-binary")


def install(uv: UvProcess, spec: Mapping[str, Any], environment: Path, beside: Path) -> None:
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
    folders = sorted({str(path.resolve()) for path in environment.glob("lib*/python*/site-packages")})
    found = {item.metadata["Name"]: item.version for item in metadata.distributions(path=folders)}
    return {re.sub(r"[-_.]+", "-", name).lower(): found[name] for name in sorted(filter(None, found))}


ARCHIVE = "environment.tar.gz"
"""The name of the file, beside whole.json."""
PREFIX = "srf-environment-"
_LEVEL = 3
"""Of gzip: nearly as small as the highest, in a third of the time."""


def pack(environment: Path, archive: Path) -> None:
    """Write a folder's content to one file, which is on the disk when this returns."""
    with open(archive, "xb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=_LEVEL, format=tarfile.PAX_FORMAT) as tar:
            tar.add(str(environment), arcname=".", filter=_nobodys)
        file.flush()
        os.fsync(file.fileno())


def unpacked(archive: str, scratch: Optional[str] = None) -> str:
    """Unpack an environment where only this user can read it.

    Args:
        archive: what `pack` wrote.
        scratch: a folder of this node; by default $TMPDIR, else /tmp.

    Returns:
        The environment's folder: its Python is `bin/python` in it. `remove` takes it.

    Raises:
        OperationError: it can't be read, or has no room.
    """
    folder = _make_folder(scratch)
    prefix = os.path.join(folder, "environment")
    try:
        os.mkdir(prefix, 0o700)
        with tarfile.open(archive, mode="r:gz") as tar:
            # Its links lead to the Python it was made with: outside, where a filter of Python 3.12 forbids them.
            tar.extraction_filter = lambda member, _: member
            tar.extractall(prefix, members=_inside(tar, prefix))
        if not os.path.exists(os.path.join(prefix, "bin", "python")):
            raise tarfile.TarError("it holds no Python")
    except (OSError, EOFError, tarfile.TarError) as error:
        remove(prefix)
        what = "the packed environment can't be unpacked on this node: {}".format(error)
        advice = "make room in {}, or set TMPDIR to a larger disk of the node".format(os.path.dirname(folder))
        raise OperationError(what, archive, advice, "environment") from error
    except BaseException:
        remove(prefix)
        raise
    return prefix


def remove(prefix: str) -> None:
    """Remove what `unpacked` made; nothing happens where it is gone, or is no such folder."""
    folder = os.path.dirname(os.path.abspath(prefix))
    if os.path.basename(folder).startswith(PREFIX) and not os.path.islink(folder):
        with contextlib.suppress(FileNotFoundError):
            # Renamed first: nobody starts a Python in one that is half gone.
            gone = os.path.join(os.path.dirname(folder), "." + os.path.basename(folder))
            os.rename(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder on this node's disk, for as long as the block lasts."""
    folder = _make_folder(None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _inside(tar: tarfile.TarFile, prefix: str) -> Iterator[tarfile.TarInfo]:
    """The members of our own archive: files, folders and links, each in its place, with modes only their owner has."""
    for member in tar:
        place = os.path.normpath(os.path.join(prefix, member.name))
        if place != prefix and not place.startswith(prefix + os.sep):
            raise tarfile.TarError("{} leads out of it".format(member.name))
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise tarfile.TarError("{} is no file".format(member.name))
        member.mode = 0o700 if member.isdir() else member.mode & 0o700
        member.uid, member.gid = os.getuid(), os.getgid()
        yield member


def _make_folder(scratch: Optional[str]) -> str:
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=scratch or os.environ.get("TMPDIR") or "/tmp")
    note_owner(folder)
    return folder
