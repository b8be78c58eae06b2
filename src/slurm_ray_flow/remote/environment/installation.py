"""Installation of packages into an environment, and environments that are packed into one file."""

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

_FILE_OPTIONS = ("--index-url", "--extra-index-url", "--find-links", "--no-index", "--no-binary", "--only-binary")


def install(uv: UvProcess, spec: Mapping[str, Any], environment: Path, temporary: Path) -> None:
    """Install the requirements of a spec."""
    if spec["requirements"]:
        # Bytecode that is compiled later is lost: it is not in the archive, and the scratch folder is removed.
        compiled = ["--compile-bytecode"] if spec.get("packed") else []
        uv.run("pip", "install", *compiled, *_arguments(spec, environment, temporary))


def _arguments(spec: Mapping[str, Any], environment: Path, temporary: Path) -> list[str]:
    options, arguments = split_options(spec.get("options", ()))
    requirements = _private_file(temporary / "requirements.txt", [*options, *spec["requirements"]])
    if spec.get("constraints"):
        arguments += ["--constraint", _private_file(temporary / "constraints.txt", spec["constraints"])]
    return ["--python", str(environment / "bin" / "python"), "--requirement", requirements, *arguments]


def split_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options as lines of the requirements file, which hides secrets, and those that uv takes as arguments only."""
    lines: list[str] = []
    arguments: list[str] = []
    for option in options:
        name, _, value = option.partition(" ")
        if name == "--pre":
            arguments += ["--prerelease", "allow"]
        elif name == "--trusted-host":
            arguments += ["--allow-insecure-host", value]
        elif name in _FILE_OPTIONS:
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
    """The versions of an environment's packages by their normalized names (PEP 503)."""
    folders = sorted({str(path.resolve()) for path in environment.glob("lib*/python*/site-packages")})
    versions = {package.metadata["Name"]: package.version for package in metadata.distributions(path=folders)}
    return {re.sub(r"[-_.]+", "-", name).lower(): versions[name] for name in sorted(filter(None, versions))}


ARCHIVE = "environment.tar.gz"
"""The name of the file, beside whole.json."""
PREFIX = "srf-environment-"
_LEVEL = 3
"""The level of gzip: the files are nearly as small as with the highest, in a third of the time."""


def pack(environment: Path, archive: Path) -> None:
    """Write a folder's content to one file, and sync it to the disk."""
    with open(archive, "xb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=_LEVEL, format=tarfile.PAX_FORMAT) as tar:
            tar.add(str(environment), arcname=".", filter=_without_owner)
        file.flush()
        os.fsync(file.fileno())


def unpacked(archive: str, scratch: Optional[str] = None) -> str:
    """Unpack an environment into a private folder of this node.

    Args:
        archive: the file that `pack` wrote.
        scratch: the folder around that one; by default $TMPDIR, else /tmp.

    Returns:
        The environment's folder, with `bin/python`, for `remove`.

    Raises:
        OperationError: the archive can't be read, or the disk is full.
    """
    folder = _make_scratch_folder(scratch)
    prefix = os.path.join(folder, "environment")
    try:
        os.mkdir(prefix, 0o700)
        with tarfile.open(archive, mode="r:gz") as tar:
            # Links lead to the Python outside that made the environment; Python 3.12's default filter refuses them.
            tar.extraction_filter = lambda member, _: member
            tar.extractall(prefix, members=_checked_members(tar, prefix))
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
    """Remove an environment of `unpacked`, if it still exists; other folders are left alone."""
    folder = os.path.dirname(os.path.abspath(prefix))
    if os.path.basename(folder).startswith(PREFIX) and not os.path.islink(folder):
        with contextlib.suppress(FileNotFoundError):
            # Renamed first, so that no process starts a Python in an incomplete environment.
            hidden = os.path.join(os.path.dirname(folder), "." + os.path.basename(folder))
            os.rename(folder, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder on this node's disk, which is removed after the block."""
    folder = _make_scratch_folder(None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _checked_members(tar: tarfile.TarFile, prefix: str) -> Iterator[tarfile.TarInfo]:
    """The members of an archive with private modes; refuses paths that lead out of it, and devices."""
    for member in tar:
        target = os.path.normpath(os.path.join(prefix, member.name))
        if target != prefix and not target.startswith(prefix + os.sep):
            raise tarfile.TarError("{} leads out of it".format(member.name))
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise tarfile.TarError("{} is no file".format(member.name))
        member.mode = 0o700 if member.isdir() else member.mode & 0o700
        member.uid, member.gid = os.getuid(), os.getgid()
        yield member


def _make_scratch_folder(scratch: Optional[str]) -> str:
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=scratch or os.environ.get("TMPDIR") or "/tmp")
    note_owner(folder)
    return folder
