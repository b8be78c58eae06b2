"""Build an environment on a cluster with uv, only once when several builders run in parallel.

    python -I builder.py build SPEC.json
    python -I builder.py build -          the spec is the first line of stdin; the build ends when stdin ends

Standard library only, Python 3.9. Each line on stdout is a JSON object with an `event`:

    waiting   another builder has the lock: `pid`, `host` and `since` of it
    building  the build has begun
    line      `text`: a line of uv's output, without credentials
    whole     the environment is complete; `built`: whether it was built now
    failed    `message`, with the last lines of uv's output

An environment is made in a temporary folder, with its whole.json, and then renamed: it is complete or does not exist.
The kernel releases the lock as soon as the builder and all its descendants are dead.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.dirname(_here)))] + [
        entry for entry in sys.path if entry != _here
    ]

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.environment.installation import install, installed_packages
from slurm_ray_flow.remote.environment.uv_tool import BuildError, Tell, UvProcess, clean_variables, without_credentials
from slurm_ray_flow.remote.shared.files import NO_LOCKS, private_folder, sync, sync_all
from slurm_ray_flow.remote.shared.protocol import OperationError, parse_json


@contextlib.contextmanager
def locked(path: Path, tell: Tell) -> Iterator[Optional[int]]:
    """Hold the lock; yields its descriptor. None on a file system without locks, where only the rename is atomic."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            _acquire(descriptor, tell)
        except OSError as error:
            if error.errno not in NO_LOCKS:
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
        record: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return {key: record[key] for key in ("pid", "host", "since")}
    except (ValueError, KeyError, TypeError):
        return {"pid": None, "host": None, "since": None}  # the holder has not written its record yet


def remove_leftovers(environments: Path, own_digest: str) -> None:
    """Remove temporary folders of killed builders: those whose lock is free, and those of this builder's lock."""
    for temporary in environments.glob(".*.*"):
        digest = temporary.name[1:].split(".")[0]
        if not temporary.is_dir():
            continue
        if digest == own_digest:
            shutil.rmtree(temporary, ignore_errors=True)
            continue
        with open(environments / f".{digest}.lock", "a") as file:
            if _try_lock(file.fileno()):
                shutil.rmtree(temporary, ignore_errors=True)


class EnvironmentPaths:
    """The paths that belong to one digest."""

    def __init__(self, root: str, digest: str) -> None:
        self.digest = digest
        self.environments = Path(root) / "environments"
        self.target = self.environments / digest
        self.lock = self.environments / f".{digest}.lock"
        self.cache = Path(root) / "cache" / "uv"


def print_event(event: dict[str, Any]) -> None:
    """Write an event as one line on stdout."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def build(spec: Mapping[str, Any], tell: Tell = print_event) -> dict[str, Any]:
    """Make `<root>/environments/<digest>` unless it is there.

    Args:
        spec: root, digest, uv (its path), python (an interpreter's path, or "3.11"), requirements, constraints and
            options (lines). Optional: version ("3.11"), which a Python given by its path must have; variables, which
            that Python needs to start; packed, whether the environment is kept as one file.
        tell: gets each event.

    Returns:
        The content of whole.json.

    Raises:
        BuildError: uv failed, the Python has another version, or the disk is full. Temporary files are removed.
    """
    paths = EnvironmentPaths(os.path.expanduser(spec["root"]), spec["digest"])
    try:
        private_folder(str(paths.environments))
        whole = read_whole(paths.target)
        if whole:
            return _report_whole(whole, paths, tell, built=False)
        with locked(paths.lock, tell) as lock:
            whole = read_whole(paths.target)
            if whole:
                return _report_whole(whole, paths, tell, built=False)
            if lock is not None:
                remove_leftovers(paths.environments, own_digest=paths.digest)
            return _report_whole(_build_and_rename(spec, paths, lock, tell), paths, tell, built=True)
    except OSError as error:
        raise BuildError(f"the environment can't be built in {paths.environments}: {error}") from error


def read_whole(environment: Path) -> dict[str, Any] | None:
    """The content of an environment's whole.json; None if the environment is not complete."""
    try:
        whole: dict[str, Any] = parse_json((environment / "whole.json").read_bytes())
        content = installation.ARCHIVE if whole.get("packed") else os.path.join("bin", "python")
        return whole if whole["digest"] == environment.name and (environment / content).exists() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build_and_rename(spec: Mapping[str, Any], paths: EnvironmentPaths, lock: int | None, tell: Tell) -> dict[str, Any]:
    tell({"event": "building", "digest": paths.digest, "requirements": len(spec["requirements"])})
    temporary = Path(tempfile.mkdtemp(prefix=f".{paths.digest}.", dir=paths.environments))
    os.environ.update(spec.get("variables") or {})
    try:
        if spec.get("packed"):
            environment, whole = _make_packed(spec, temporary, lock, tell)
        else:
            environment = temporary / "environment"
            uv = UvProcess(spec["uv"], temporary, lock, tell, cache=paths.cache)
            whole = _make(spec, uv, environment, temporary)
        sync_all(str(environment))
        _write_whole(environment / "whole.json", whole)
        return _rename_to_target(environment, paths, whole)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_packed(spec: Mapping[str, Any], temporary: Path, lock: int | None, tell: Tell) -> tuple[Path, dict[str, Any]]:
    """Make the environment and uv's cache on this node's disk, so that the root gets only the packed file."""
    packed = temporary / "packed"
    packed.mkdir(0o700)
    with installation.scratch_folder() as scratch:
        uv = UvProcess(spec["uv"], scratch, lock, tell)
        uv.always_own_cache(scratch / "cache")
        whole = _make(spec, uv, scratch / "environment", temporary)
        installation.pack(scratch / "environment", packed / installation.ARCHIVE)
    return packed, {**whole, "packed": installation.ARCHIVE}


def _make(spec: Mapping[str, Any], uv: UvProcess, environment: Path, temporary: Path) -> dict[str, Any]:
    """Make the environment; returns the content of its whole.json."""
    uv.run("venv", "--relocatable", "--python", spec["python"], str(environment))
    version = _version(environment, _wanted_version(spec))
    install(uv, spec, environment, temporary)
    return {
        "digest": spec["digest"],
        "packages": installed_packages(environment),
        "python": version,
        "created": time.time(),
    }


def _wanted_version(spec: Mapping[str, Any]) -> str:
    match = re.fullmatch(r"\d+\.\d+", spec["python"])
    return str(spec.get("version") or (match[0] if match else ""))


def _version(environment: Path, expected: str) -> str:
    """The version that the environment's Python itself prints, so that a broken interpreter fails now."""
    command = [str(environment / "bin" / "python"), "-I", "-c", "import platform; print(platform.python_version())"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_variables())
    version = result.stdout.strip()
    if result.returncode:
        raise BuildError(f"the Python of the environment can't start: {result.stderr.strip()}")
    if expected and not version.startswith(f"{expected}."):
        raise BuildError(f"the environment is for Python {expected}, but the Python here is {version}: {command[0]}")
    return version


def _write_whole(path: Path, whole: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(whole, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(str(path.parent), ["."])


def _rename_to_target(environment: Path, paths: EnvironmentPaths, whole: dict[str, Any]) -> dict[str, Any]:
    if paths.target.exists():
        existing = read_whole(paths.target)
        if existing:
            return existing  # without locks, another builder can be first
        os.rename(paths.target, environment.parent / "damaged")
    os.rename(environment, paths.target)
    sync(str(paths.environments), ["."])
    return whole


def _report_whole(whole: dict[str, Any], paths: EnvironmentPaths, tell: Tell, built: bool) -> dict[str, Any]:
    tell({"event": "whole", "path": str(paths.target), "built": built, "packages": len(whole["packages"])})
    return whole


def _exit_on_signal(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """The command line: `build SPEC.json`, or `build -`."""
    if len(arguments) != 2 or arguments[0] != "build":
        sys.stderr.write("usage: builder.py build SPEC.json\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _exit_on_signal)
    os.umask(0o077)
    try:
        build(_spec(arguments[1]))
    except (BuildError, OperationError, OSError, ValueError, KeyError) as error:
        text = str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"
        print_event({"event": "failed", "message": without_credentials(text)})
        return 1
    return 0


def _spec(file: str) -> dict[str, Any]:
    if file != "-":
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    # Unbuffered: the thread below must see the end of stdin.
    line = bytearray()
    while not line.endswith(b"\n") and (data := os.read(0, 1 << 16)):
        line += data
    threading.Thread(target=_exit_when_stdin_ends, daemon=True).start()
    return dict(json.loads(line))


def _exit_when_stdin_ends() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
