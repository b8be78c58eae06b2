"""A real PostgreSQL for tests, on loopback, with a user whose password is made anew; gone at the end of the block."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support import wait_for

USER = "srf"


def programs() -> Path | None:
    """Where Debian's PostgreSQL has its programs, the newest version; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return found[-1] if found else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of its database, password included."""
    folder = Path(tempfile.mkdtemp(prefix="srf-pg-"))
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
    password = secrets.token_hex(12)
    _made(folder, password)
    process, port = _started(folder)
    try:
        yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def as_owner(*command: str) -> list[str]:
    """A command as a user who may run PostgreSQL."""
    if os.getuid():
        return list(command)
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


def _made(folder: Path, password: str) -> None:
    assert programs() is not None
    initdb = [str(programs() / "initdb"), "--pgdata", str(folder / "data"), "--username", USER, "--no-sync"]
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)  # its folder is PostgreSQL's alone
    options = ["--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "UTF8", "--no-instructions"]
    subprocess.run(as_owner(*initdb, *options), check=True, capture_output=True, cwd="/")


def _started(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = int(chosen.getsockname()[1])
    server = [str(programs() / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1"]
    quick = ["-k", str(folder), "-c", "fsync=off", "-c", "logging_collector=off", "-c", "shared_buffers=32MB"]
    process = subprocess.Popen(as_owner(*server, *quick), cwd="/", stderr=subprocess.DEVNULL)

    def is_ready() -> bool:
        assert process.poll() is None, "PostgreSQL ended by itself"
        asked = [str(programs() / "pg_isready"), "--quiet", "--host", "127.0.0.1", "--port", str(port)]
        return subprocess.run(asked, check=False).returncode == 0  # while it starts it listens, and refuses

    wait_for(is_ready)
    return process, port
