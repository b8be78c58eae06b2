"""Build an environment on a cluster with uv, once, whatever runs in parallel.

    python -I environment.py build SPEC.json

Standard library only, Python 3.9. Each line on stdout is a JSON object with an `event`:

    waiting   another builder has the lock; `pid`, `host` and `since` say which
    building  the build has begun
    line      `text`: what uv says, without credentials
    whole     the environment is there; `built` says whether it was made now
    failed    `message`, with uv's own last words

An environment is made beside its place and renamed into it, with whole.json already in it: it is there whole or not
at all. The lock is the kernel's, so that it is free the moment its builder and all it started are dead.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(_here))] + [entry for entry in sys.path if entry != _here]

import contextlib
import errno
import fcntl
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from slurm_ray_flow.remote.uv_program import BuildError, Tell, Uv, without_credentials

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Places:
    """The paths that belong to one digest."""

    def __init__(self, root: str, digest: str) -> None:
        self.digest = digest
        self.environments = Path(root) / "environments"
        self.target = self.environments / digest
        self.lock = self.environments / f".{digest}.lock"


def print_event(event: dict[str, Any]) -> None:
    """Write an event as one line on stdout."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def build(spec: Mapping[str, Any], tell: Tell = print_event) -> dict[str, Any]:
    """Make `<root>/environments/<digest>` unless it is there.

    Args:
        spec: root, digest, uv (its path), python (an interpreter's path, or "3.11"), requirements, constraints and
            options (lines); and version ("3.11"), which a Python given by its path must have, where it is known.
        tell: is given each event.

    Returns:
        What whole.json says.

    Raises:
        BuildError: uv refused, the Python is another one, or the disk is full. Nothing is left behind.
    """
    places = Places(os.path.expanduser(spec["root"]), spec["digest"])
    try:
        places.environments.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = read_whole(places.target)
        if found:
            return _done(found, places, tell, built=False)
        with _locked(places.lock, tell) as lock:
            found = read_whole(places.target)
            if found:
                return _done(found, places, tell, built=False)
            if lock is not None:
                remove_remains(places.environments, ours=places.digest)
            return _done(_build_beside(spec, places, lock, tell), places, tell, built=True)
    except OSError as error:
        raise BuildError(f"the environment can't be built in {places.environments}: {error}") from error


def read_whole(environment: Path) -> dict[str, Any] | None:
    """What the whole.json of an environment says; None where it is not whole."""
    try:
        found: dict[str, Any] = json.loads((environment / "whole.json").read_text(encoding="utf-8"))
        return found if found["digest"] == environment.name and (environment / "bin" / "python").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_remains(environments: Path, ours: str) -> None:
    """Remove what killed builders left: folders beside whose lock nobody holds, or whose lock we hold ourselves."""
    for beside in environments.glob(".*.*"):
        digest = beside.name[1:].split(".")[0]
        if not beside.is_dir():
            continue
        if digest == ours:
            shutil.rmtree(beside, ignore_errors=True)
            continue
        with open(environments / f".{digest}.lock", "a") as file:
            if _try_lock(file.fileno()):
                shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, tell: Tell) -> Iterator[Optional[int]]:
    """Hold the lock. Gives None where the file system has no locks: the rename alone keeps builds whole there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            _acquire(descriptor, tell)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            tell({"event": "line", "text": f"no locks on this file system ({error}): two builds may run at once"})
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, tell: Tell) -> None:
    if not _try_lock(descriptor):
        tell({"event": "waiting", **_holder(descriptor)})
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    record = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, record, 0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return {key: found[key] for key in ("pid", "host", "since")}
    except (ValueError, KeyError, TypeError):
        return {"pid": None, "host": None, "since": None}  # it has the lock, and has not yet written who it is


def _build_beside(spec: Mapping[str, Any], places: Places, lock: int | None, tell: Tell) -> dict[str, Any]:
    tell({"event": "building", "digest": places.digest, "requirements": len(spec["requirements"])})
    beside = Path(tempfile.mkdtemp(prefix=f".{places.digest}.", dir=places.environments))
    try:
        made = beside / "environment"
        uv = Uv(spec["uv"], beside, lock, tell)
        uv.run("venv", "--relocatable", "--python", spec["python"], str(made))
        version = _version(made, _wanted_version(spec))
        _install(uv, spec, made, beside)
        whole = {
            "digest": places.digest,
            "packages": installed_packages(made),
            "python": version,
            "created": time.time(),
        }
        _write_whole(made / "whole.json", whole)
        return _put_in_place(made, places, whole)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _wanted_version(spec: Mapping[str, Any]) -> str:
    plain = re.fullmatch(r"\d+\.\d+", spec["python"])
    return str(spec.get("version") or (plain[0] if plain else ""))


def _version(environment: Path, wanted: str) -> str:
    """The environment's Python version, from itself, so that an interpreter that can't start is found now."""
    command = [str(environment / "bin" / "python"), "-I", "-c", "import platform; print(platform.python_version())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    if done.returncode:
        raise BuildError(f"the Python of the environment can't start: {done.stderr.strip()}")
    if wanted and not found.startswith(f"{wanted}."):
        raise BuildError(f"the environment is for Python {wanted}, but the Python here is {found}: {command[0]}")
    return found


def _install(uv: Uv, spec: Mapping[str, Any], environment: Path, beside: Path) -> None:
    options, arguments = _split_options(spec.get("options", ()))
    wanted = _private_file(beside / "requirements.txt", [*options, *spec["requirements"]])
    if spec.get("constraints"):
        arguments += ["--constraint", _private_file(beside / "constraints.txt", spec["constraints"])]
    if spec["requirements"]:
        python = str(environment / "bin" / "python")
        uv.run("pip", "install", "--python", python, "--requirement", wanted, *arguments)


def _split_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options that stand in the file, where secrets belong, and those that uv knows as arguments alone."""
    lines: list[str] = []
    arguments: list[str] = []
    for option in options:
        name, _, value = option.partition(" ")
        if name == "--pre":
            arguments += ["--prerelease", "allow"]
        elif name == "--trusted-host":
            arguments += ["--allow-insecure-host", value]
        elif name == "--index-strategy":
            arguments += [name, value]
        else:
            lines.append(option)
    return lines, arguments


def _private_file(path: Path, lines: Sequence[str]) -> str:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return str(path)


def installed_packages(environment: Path) -> dict[str, str]:
    """Version by name (PEP 503) of what an environment holds."""
    folders = sorted({str(path.resolve()) for path in environment.glob("lib*/python*/site-packages")})
    found = {item.metadata["Name"]: item.version for item in metadata.distributions(path=folders)}
    return {re.sub(r"[-_.]+", "-", name).lower(): found[name] for name in sorted(found)}


def _write_whole(path: Path, whole: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(whole, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _put_in_place(made: Path, places: Places, whole: dict[str, Any]) -> dict[str, Any]:
    if places.target.exists():
        found = read_whole(places.target)
        if found:
            return found  # without locks, another builder may have been first
        os.rename(places.target, made.parent / "damaged")
    os.rename(made, places.target)
    _sync_folder(places.environments)
    return whole


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _done(whole: dict[str, Any], places: Places, tell: Tell, built: bool) -> dict[str, Any]:
    tell({"event": "whole", "path": str(places.target), "built": built, "packages": len(whole["packages"])})
    return whole


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """The command line: `build SPEC.json`."""
    if len(arguments) != 2 or arguments[0] != "build":
        sys.stderr.write("usage: environment.py build SPEC.json\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    os.umask(0o077)
    try:
        with open(arguments[1], encoding="utf-8") as file:
            spec = json.load(file)
        build(spec)
    except (BuildError, OSError, ValueError, KeyError) as error:
        text = str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"
        print_event({"event": "failed", "message": without_credentials(text)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
