"""One Prefect server for all processes of a run of the tests, each of which has a home of its own.

It belongs to the home of the first process (with pytest-xdist: of the one that hands out the tests). The others have
its address and password in their homes, and a supervisor of their own there, which takes the server for one whose
supervisor was killed: so what a supervisor does is done for each home.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.server import ServerAddress

OWNER = "TEST_SERVER_HOME"
"""The variable in which the processes of a run are told whose server it is."""
TOLD = ("secret", "encryption_key", "port")
EMPTY = Path(sys.prefix, f".empty-prefect-{version('prefect')}")
"""What a server makes when it starts for the first time, which takes eight seconds of processor: the tables of its
database, and its pages. test_server.py sees it done for real."""

CLEARS = """
import contextlib, glob, os, shutil, signal, sys, time
from pathlib import Path
pid, server_home, *homes = sys.argv[1:]
while os.path.exists(f"/proc/{pid}") and os.getppid() == int(pid):
    time.sleep(0.2)
deadline = time.monotonic() + 60
while server_home in homes and set(glob.glob(f"{server_home}-*")) - set(homes) and time.monotonic() < deadline:
    time.sleep(0.2)
from slurm_ray_flow.blocks.processes import alive, end
from slurm_ray_flow.blocks.server import stop_server
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.files import server_files
for home in filter(os.path.isdir, homes):
    os.environ["SRF_HOME"] = home
    state = read_state(server_files())
    if Path(home, "server", "shared").exists():
        if state and alive(state.supervisor):
            os.kill(state.supervisor.pid, signal.SIGKILL)
    else:
        stop_server()
    os.system(f"chmod -R u+w {home}")
    shutil.rmtree(home, ignore_errors=True)
"""


def home_of_this_process() -> str:
    """A new home; that of the process which the run begins with is the server's."""
    if owner := os.environ.get(OWNER):
        home = f"{owner}-{os.getpid()}"
        os.mkdir(home, 0o700)
        return home
    os.environ[OWNER] = tempfile.mkdtemp(prefix="srf-test-")
    return os.environ[OWNER]


def clear_after(pid: int, *homes: str) -> None:
    """End what belongs to these homes, and remove them, once this process has ended, however it ends.

    The servers go after it, and the one that all share after all: Prefect's client holds a process back for a minute at
    its end when the server has gone before it.
    """
    command = [sys.executable, "-c", CLEARS, str(pid), os.environ[OWNER], *homes]
    subprocess.Popen(command, start_new_session=True)


def begin_empty(home: str | Path) -> None:
    """Let the first server of a home begin with what a first start has made."""
    target = Path(home, "server")
    if EMPTY.exists() and not target.exists():
        shutil.copytree(EMPTY, target)
        for folder in (Path(home), target, target / "prefect"):
            folder.chmod(0o700)


def _keep_empty(started: Path) -> None:
    """Keep that of a server which has just been started, for the next ones."""
    if EMPTY.exists():
        return
    # (Whoever else was first is as good; and while the server still writes its pages, the next start keeps them.)
    with suppress(OSError), tempfile.TemporaryDirectory(dir=EMPTY.parent) as folder:
        made = Path(folder, "server")
        (made / "prefect").mkdir(parents=True)
        shutil.copytree(started / "ui", made / "ui")
        database = made / "prefect" / "prefect.db"
        with (
            closing(sqlite3.connect(started / "prefect" / "prefect.db")) as old,
            closing(sqlite3.connect(database)) as new,
        ):
            old.backup(new)
        made.rename(EMPTY)


def join() -> ServerAddress:
    """The server of the run, which the first who asks starts."""
    from slurm_ray_flow.blocks.server import ensure_server
    from slurm_ray_flow.blocks.server.files import make_folders, server_files

    owner, mine = os.environ[OWNER], server_files()
    with open(f"{owner}/test-run.lock", "a") as lock, pytest.MonkeyPatch.context() as patch:
        os.fchmod(lock.fileno(), 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv("SRF_HOME", owner)
        begin_empty(owner)
        ensure_server(print)
        _keep_empty(Path(owner, "server"))
    if mine.folder != Path(owner, "server"):
        make_folders(mine)
        for name in TOLD:
            (mine.folder / name).write_bytes(Path(owner, "server", name).read_bytes())
            (mine.folder / name).chmod(0o600)
        state = json.loads(Path(owner, "server", "server.json").read_text())
        mine.state.write_text(json.dumps({**state, "supervisor_started": 0}))
        (mine.folder / "shared").touch(mode=0o600)
    return ensure_server(print)
