"""A host that functions are launched on, and what is there of their runs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

from hosts.host import inner_pid
from hosts.lab import Lab
from hosts.launcher import USER, Launcher, give_uv, own
from hosts.layout import ALICE
from hosts.road import Road
from slurm_ray_flow import SshConnection, SshServer
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.interface.handle import Handle
from support import wait_for

NAME, SHARED = own("desi-launches"), own("desi-launches-shared")


class LaunchLab(Launcher):
    """`desi` under a name, a root folder and a lock of these tests' own. One environment serves all launches."""

    def __init__(self, lab: Lab, project: Path) -> None:
        super().__init__(lab["desi"], project)
        self.lab = lab
        self.name = NAME
        mark = secrets.token_hex(4)
        self.root, self.lock = f"/home/{USER}/launches-{mark}", f"/tmp/launches-{mark}.lock"
        give_uv(self.host, self.root)
        connection = SshConnection(host="desi", config_file=Path(lab.ssh_config), connect_timeout=5)
        self.block = SshServer(connection=connection, root=self.root, lock_path=self.lock)
        self._before = set[Path]()
        self.shared = self.block.model_copy(update={"lock_path": ""})
        with connected(ensure_server(print)):
            self.block.save(self.name, overwrite=True)
            self.shared.save(SHARED, overwrite=True)

    def saved_by(self, road: Road) -> str:
        """The name of the same host as it is reached by a road, which counts what these tests' own processes do."""
        name = own(f"desi-launches-by-{Path(road.ssh_config).stem}").replace("_", "-").replace(".", "-")
        connection = SshConnection(host="desi", config_file=Path(road.ssh_config), connect_timeout=5)
        with connected(ensure_server(print)):
            SshServer(connection=connection, root=self.root, lock_path=self.lock).save(name)
        return name

    def begin(self) -> None:
        """Remember what other tests have left: locks and queues."""
        self._before = set(self._temporary())

    def processes(self, run_id: str) -> set[int]:
        """What lives there of a run, by this machine's process ids."""
        return {pid for pid, argv in self.host.processes().items() if run_id in argv or run_id == allocation(pid)}

    def left(self, run_id: str) -> list[str]:
        """What is there of a run that has ended: nothing but its folder, if all is well."""
        ours = {Path(self.lock).name, f"{Path(self.lock).name}.queue"}
        tmp = [path for path in self._temporary() if path not in self._before and path.name not in ours]
        found = [str(path) for path in tmp if self._is_a_runs(path)]
        return [*found, *(str(self.host.processes().get(pid)) for pid in self.processes(run_id))]

    def _temporary(self) -> list[Path]:
        return [path for place in ("/tmp", "/dev/shm") for path in self.host.path(place).iterdir()]

    def _is_a_runs(self, path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return path.lstat().st_uid == ALICE.uid
        return False

    def free(self) -> bool:
        """Whether nobody holds the server, nor waits for it."""
        state = self.block.ask("queue.state", path=self.lock, slots=1)
        return bool(state["free"]) and not state["waiting"]

    def over(self, run_id: str, seconds: int = 15) -> None:
        """Nothing of a run is left, and the server is free."""
        wait_for(lambda: not self.left(run_id), seconds)
        wait_for(self.free, seconds)

    def clear(self) -> None:
        """End what a test has left, here and there: the next one must not wait for its lock."""
        self.end_scripts()
        heads = [pid for pid, argv in self.host.processes().items() if self.root in argv and "--detach" in argv]
        for pid in heads:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def waiting(self, background: str = "", cluster: str = NAME) -> WithScript:
        """A run of `held.wait` that has started, and the script that waits for it."""
        folder = self.folder()
        script = self.script("wait", folder, background, cluster)
        return WithScript(self, folder, script)

    def submitted(self, wait: Any, background: str = "") -> Waiting:
        """The same, launched by this process."""
        folder = self.folder()
        wait.submit(folder, background)
        return Waiting(self, folder)


class Waiting:
    """A run that waits for a word to go on."""

    def __init__(self, lab: LaunchLab, folder: str) -> None:
        self.lab, self.folder = lab, folder
        wait_for(lambda: lab.starts(folder))
        [self.driver] = [pid for pid in lab.host.processes() if inner_pid(pid) == lab.starts(folder)[0]]
        self.id = allocation(self.driver)
        self.handle = Handle.attach(self.id)

    @property
    def inner(self) -> int:
        return parent(self.driver)

    @property
    def keeper(self) -> int:
        return parent(self.inner)

    @property
    def watchdog(self) -> int:
        [found] = [pid for pid in self.lab.processes(self.id) - {self.inner} if parent(pid) == self.keeper]
        return found

    def state(self) -> str:
        """As `srf runs` says it."""
        said, _ = self.lab.srf("runs", "--json").communicate(timeout=180)
        return next(str(run["state"]) for run in json.loads(said) if run["run_id"] == self.id)


class WithScript(Waiting):
    """One that a script waits for."""

    def __init__(self, lab: LaunchLab, folder: str, script: subprocess.Popen[str]) -> None:
        self.script = script
        super().__init__(lab, folder)


def allocation(pid: int) -> str:
    """The run that a process belongs to, as it was told when it was started."""
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"SRF_ALLOCATION="):
                return variable.partition(b"=")[2].decode()
    return ""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
