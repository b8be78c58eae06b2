"""The Prefect server of each process of a run of the tests, on a home of its own.

One for all of them was tried: its single process took most of a core, and everybody waited for it. So each has its
own, which begins with the tables and pages that the first one has made.
"""

from __future__ import annotations

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

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.server import ServerAddress

OWNER = "TEST_SERVER_HOME"
"""The variable in which the processes of a run are told the home of the first of them."""
EMPTY = Path(sys.prefix, f".empty-prefect-{version('prefect')}")
"""What a server makes when it starts for the first time, which takes eight seconds of processor: the tables of its
database, and its pages. test_server.py sees it done for real."""

CLEARS = """
import os, shutil, sys, time
pid, *homes = sys.argv[1:]
while os.path.exists(f"/proc/{pid}") and os.getppid() == int(pid):
    time.sleep(0.2)
from slurm_ray_flow.blocks.grid_engine import end_engine
from slurm_ray_flow.blocks.server import stop_server
for home in filter(os.path.isdir, homes):
    os.environ["SRF_HOME"] = home
    end_engine()
    stop_server()
    os.system(f"chmod -R u+w {home}")
    shutil.rmtree(home, ignore_errors=True)
"""


def home_of_this_process() -> str:
    """A new home, named after that of the process which the run begins with."""
    if owner := os.environ.get(OWNER):
        home = f"{owner}-{os.getpid()}"
        os.mkdir(home, 0o700)
        return home
    os.environ[OWNER] = tempfile.mkdtemp(prefix="srf-test-")
    return os.environ[OWNER]


def clear_after(pid: int, *homes: str) -> None:
    """End what belongs to these homes, and remove them, once this process has ended, however it ends.

    The servers go after it: Prefect's client holds a process back for a minute where the server has gone before it.
    """
    command = [sys.executable, "-c", CLEARS, str(pid), *homes]
    subprocess.Popen(command, start_new_session=True)


def begin_empty(home: str | Path) -> None:
    """Let the first server of a home begin with what a first start has made."""
    target = Path(home, "server")
    if EMPTY.exists() and not target.exists():
        shutil.copytree(EMPTY, target)
        for path in (Path(home), target, *target.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)


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
    """The server of this process, which the first who asks starts."""
    from slurm_ray_flow.blocks.server import ensure_server
    from slurm_ray_flow.blocks.server.files import server_files

    mine = server_files().folder
    begin_empty(mine.parent)
    address = ensure_server(print)
    _keep_empty(mine)
    return address
