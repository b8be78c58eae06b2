"""Build an environment on a cluster with uv, once, whatever runs in parallel.

    python -I environment.py build SPEC.json
    python -I environment.py build -          the spec is the first line of stdin; the build ends when stdin ends

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
    """Hold the lock. Gives None where the file system has no locks: the rename alone keeps builds whole there."""
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
        found: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return {key: found[key] for key in ("pid", "host", "since")}
    except (ValueError, KeyError, TypeError):
        return {"pid": None, "host": None, "since": None}  # it has the lock, and has not yet written who it is


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
            options (lines). Where they are known: version ("3.11"), which a Python given by its path must have;
            variables, which that Python needs to start; packed, whether it is kept as one file.
        tell: is given each event.

    Returns:
        What whole.json says.

    Raises:
        BuildError: uv refused, the Python is another one, or the disk is full. Nothing is left behind.
    """
    places = EnvironmentPaths(os.path.expanduser(spec["root"]), spec["digest"])
    try:
        private_folder(str(places.environments))
        found = read_whole(places.target)
        if found:
            return _done(found, places, tell, built=False)
        with locked(places.lock, tell) as lock:
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
        found: dict[str, Any] = parse_json((environment / "whole.json").read_bytes())
        content = installation.ARCHIVE if found.get("packed") else os.path.join("bin", "python")
        return found if found["digest"] == environment.name and (environment / content).exists() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build_beside(spec: Mapping[str, Any], places: EnvironmentPaths, lock: int | None, tell: Tell) -> dict[str, Any]:
    tell({"event": "building", "digest": places.digest, "requirements": len(spec["requirements"])})
    beside = Path(tempfile.mkdtemp(prefix=f".{places.digest}.", dir=places.environments))
    os.environ.update(spec.get("variables") or {})
    try:
        if spec.get("packed"):
            made, whole = _make_packed(spec, beside, lock, tell)
        else:
            made = beside / "environment"
            uv = UvProcess(spec["uv"], beside, lock, tell, cache=places.cache)
            whole = _make(spec, uv, made, beside)
        sync_all(str(made))
        _write_whole(made / "whole.json", whole)
        return _put_in_place(made, places, whole)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _make_packed(spec: Mapping[str, Any], beside: Path, lock: int | None, tell: Tell) -> tuple[Path, dict[str, Any]]:
    """Make it on this node's own disk, uv's cache with it, so that the root gets one file and never many."""
    kept = beside / "packed"
    kept.mkdir(0o700)
    with installation.scratch_folder() as scratch:
        uv = UvProcess(spec["uv"], scratch, lock, tell, cache=scratch / "cache")
        uv.always_own_cache(scratch / "cache")
        whole = _make(spec, uv, scratch / "environment", beside)
        installation.pack(scratch / "environment", kept / installation.ARCHIVE)
    return kept, {**whole, "packed": installation.ARCHIVE}


def _make(spec: Mapping[str, Any], uv: UvProcess, made: Path, beside: Path) -> dict[str, Any]:
    """Make the environment itself; says what it holds."""
    uv.run("venv", "--relocatable", "--python", spec["python"], str(made))
    version = _version(made, _wanted_version(spec))
    install(uv, spec, made, beside)
    return {
        "digest": spec["digest"],
        "packages": installed_packages(made),
        "python": version,
        "created": time.time(),
    }


def _wanted_version(spec: Mapping[str, Any]) -> str:
    plain = re.fullmatch(r"\d+\.\d+", spec["python"])
    return str(spec.get("version") or (plain[0] if plain else ""))


def _version(environment: Path, wanted: str) -> str:
    """The environment's Python version, from itself, so that an interpreter that can't start is found now."""
    command = [str(environment / "bin" / "python"), "-I", "-c", "import platform; print(platform.python_version())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_variables())
    found = done.stdout.strip()
    if done.returncode:
        raise BuildError(f"the Python of the environment can't start: {done.stderr.strip()}")
    if wanted and not found.startswith(f"{wanted}."):
        raise BuildError(f"the environment is for Python {wanted}, but the Python here is {found}: {command[0]}")
    return found


def _write_whole(path: Path, whole: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(whole, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(str(path.parent), ["."])


def _put_in_place(made: Path, places: EnvironmentPaths, whole: dict[str, Any]) -> dict[str, Any]:
    if places.target.exists():
        found = read_whole(places.target)
        if found:
            return found  # without locks, another builder may have been first
        os.rename(places.target, made.parent / "damaged")
    os.rename(made, places.target)
    sync(str(places.environments), ["."])
    return whole


def _done(whole: dict[str, Any], places: EnvironmentPaths, tell: Tell, built: bool) -> dict[str, Any]:
    tell({"event": "whole", "path": str(places.target), "built": built, "packages": len(whole["packages"])})
    return whole


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """The command line: `build SPEC.json`, or `build -`."""
    if len(arguments) != 2 or arguments[0] != "build":
        sys.stderr.write("usage: environment.py build SPEC.json\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
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
    # Unbuffered: what follows the line is for nobody but its end.
    line = bytearray()
    while not line.endswith(b"\n") and (some := os.read(0, 1 << 16)):
        line += some
    threading.Thread(target=_leave_when_stdin_ends, daemon=True).start()
    return dict(json.loads(line))


def _leave_when_stdin_ends() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
