"""The names of the server's files at home, and the secrets among them."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.core.home import home
from slurm_ray_flow.remote.shared.files import lock_if_possible

USER = "srf"
"""The user's name for the server; the password is random."""


@dataclass(frozen=True)
class ServerFiles:
    """The server's files, in one folder that only its user can enter."""

    folder: Path

    @property
    def prefect_home(self) -> Path:
        """PREFECT_HOME of the server: its database and its leases."""
        return self.folder / "prefect"

    @property
    def state(self) -> Path:
        """The state file: the server's address and its processes."""
        return self.folder / "server.json"

    @property
    def tunnel(self) -> Path:
        """The state file of the tunnel by which this host reaches the server on another host with the same home."""
        return self.folder / f"tunnel-{socket.gethostname()}.json"

    @property
    def secret(self) -> Path:
        """The password of the API and the UI."""
        return self.folder / "secret"

    @property
    def encryption_key(self) -> Path:
        """The key of the secrets in the server's database. Without it they are lost."""
        return self.folder / "encryption_key"

    @property
    def database(self) -> Path:
        """The address of the database, with its password, if it is not Prefect's own file."""
        return self.folder / "database"

    @property
    def temporary(self) -> Path:
        """Temporary files of the runners of deployments."""
        return self.folder / "tmp"

    @property
    def log(self) -> Path:
        """The log of server and supervisor."""
        return self.folder / "log"

    @property
    def lock(self) -> Path:
        """The lock of processes that start or stop the server."""
        return self.folder / "lock"

    @property
    def user_interface(self) -> Path:
        """The UI's files, copied from Prefect at the first start."""
        return self.folder / "ui"

    @property
    def log_in_page(self) -> Path:
        """A local page that takes the browser to the UI with the password at hand."""
        return self.folder / "log-in.html"


def server_files() -> ServerFiles:
    """The server's files of this user, whether or not they exist."""
    return ServerFiles(home() / "server")


def make_folders(files: ServerFiles) -> None:
    """Make the folders, and make existing ones private."""
    for folder in (files.folder.parent, files.folder, files.prefect_home):
        private_folder(folder).chmod(0o700)


def password(files: ServerFiles) -> str:
    """The password, made the first time."""
    return stored_or_made(files.secret, lambda: secrets.token_urlsafe(32))


def auth_string(files: ServerFiles) -> str:
    """User and password in the form of Prefect's settings."""
    return f"{USER}:{password(files)}"


def encryption_key(files: ServerFiles) -> str:
    """The key of the secrets in the database, made the first time."""
    return stored_or_made(files.encryption_key, lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())


@contextlib.contextmanager
def locked(files: ServerFiles) -> Iterator[None]:
    """Hold the lock against all processes of this user while the block runs."""
    make_folders(files)
    files.lock.touch(mode=0o600)
    with files.lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def only_process(files: ServerFiles, program: str, patience: float = 0.0) -> Iterator[bool]:
    """Be the only process of this program for this home, as long as the block lasts.

    Args:
        files: the server's files.
        program: the name of the program.
        patience: seconds to wait for the end of another process.

    Returns:
        Whether it is the only process; True on a file system without locks.
    """
    deadline = time.monotonic() + patience
    with open(os.open(files.folder / f"{program}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as stream:
        yield _try_lock(stream.fileno(), deadline)


def _try_lock(descriptor: int, deadline: float) -> bool:
    while True:
        with contextlib.suppress(BlockingIOError):
            lock_if_possible(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def stored_or_made(path: Path, make: Callable[[], str]) -> str:
    """The text of a private file, which is made the first time."""
    with contextlib.suppress(FileNotFoundError):
        if stored := path.read_text().strip():  # a loss of power may leave it empty
            return stored
    write_whole(path, make().encode())
    return path.read_text()
