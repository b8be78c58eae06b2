"""A real PostgreSQL for tests, on loopback, with a user whose password is made anew; gone at the end of the block."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
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


class Server:
    """A PostgreSQL that can be killed and started again. `url` is its address, password included."""

    def __init__(self, folder: Path, password: str) -> None:
        _made(folder, password)
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            self._port = int(chosen.getsockname()[1])
        self._folder = folder
        self.url = f"postgresql://{USER}:{password}@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import psycopg

        self._process = _started(self._folder, self._port)

        def answers() -> bool:
            assert self._process.poll() is None, "PostgreSQL ended by itself"
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return True
            return False

        wait_for(answers)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it; SIGQUIT ends it as a crash does: the next start has to recover."""
        self._process.send_signal(number)
        self._process.wait(30)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A PostgreSQL of the caller's own."""
    folder = Path(tempfile.mkdtemp(prefix="srf-pg-"))
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
    made = Server(folder, secrets.token_hex(12))
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The address of its database, password included."""
    with server() as made:
        yield made.url


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


def _started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    program = [str(programs() / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1"]
    quick = ["-k", str(folder), "-c", "fsync=off", "-c", "logging_collector=off", "-c", "shared_buffers=32MB"]
    return subprocess.Popen(as_owner(*program, *quick), cwd="/", stderr=subprocess.DEVNULL)
