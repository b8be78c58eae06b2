"""Ray on one host of an allocation: started, probed until it is ready, ended with the head."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote import path_of
from slurm_ray_flow.remote.head import nursery
from slurm_ray_flow.remote.shared import container, limits, processes
from slurm_ray_flow.remote.shared.events import tail
from slurm_ray_flow.remote.shared.leftovers import note_owner, remove_leftovers
from slurm_ray_flow.remote.shared.protocol import MAKE_ONE, NO_SHARED_MEMORY, TRY

START_LIMIT, START_LIMIT_IN_JOB = 60.0, 180.0
"""Where an environment lies on the disk that all nodes share, Ray is read from there for long the first time."""
LOOPBACK = "127.0.0.1"
ATTEMPTS = 3
FOLDER_PREFIX = "srf-"
# "session_2026-11-21_08-20-12_832973_6205/sockets/plasma_store" follows, and 107 bytes are all that a socket may have.
LONGEST_FOLDER = 40


class RayCluster:
    """Ray on one host, below a private folder, on ports of its own.

    Args:
        spec: the allocation's spec.json.
        environment: the variables that Ray's processes get.
        own_address: where other hosts reach this one; loopback for a cluster of one host.
        joins: it is a worker, and is told later which head it belongs to (`join`).
        dashboard_host: where Ray's dashboard is to be reached; "" for none.

    Attributes:
        dashboard: host:port of it, once Ray is ready; "" for none.
    """

    def __init__(
        self,
        spec: Dict[str, Any],
        environment: Dict[str, str],
        own_address: str = LOOPBACK,
        joins: bool = False,
        dashboard_host: str = "",
    ) -> None:
        self._dashboard_host, self.dashboard = dashboard_host, ""
        self._spec, self._own_address, self._joins = spec, own_address, joins
        self._user_environment = environment
        self._limit = START_LIMIT_IN_JOB if spec.get("scheduler") else START_LIMIT
        self.joined = not joins
        self.folder, self.token = "", secrets.token_hex(32)
        self.variables: Dict[str, str] = {}
        self._head = ""
        if not joins:
            self._settle(_private_folder())
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.address: Optional[str] = None
        self.failure: Optional[str] = None
        self.own_processes: Set[int] = set()
        self.starved, self._kills = False, limits.out_of_memory_kills()
        self.started = time.monotonic()
        self._attempts = 0

    def _settle(self, folder: str) -> None:
        self.folder = folder
        self._open_folder = os.path.join(self.folder, "r")  # Ray gives its own folder mode 0777
        self.variables = self._variables()
        self._environment = container.python_variables(self._spec, {**self._user_environment, **self.variables})

    def start(self) -> None:
        """Start Ray; `poll` says when it is ready. A worker that does not know its head yet waits, imported, for it."""
        self._attempts += 1
        with contextlib.suppress(OSError):
            os.unlink(self._address_file)
        with open(os.path.join(self.folder, "ray.log"), "ab") as output:
            self.process = subprocess.Popen(
                [*self._program(), "-"], env=self._environment, cwd=self._folder_to_start_in(),
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if self.joined:
            self._go_on()
        if self._attempts == 1:  # Ray's import takes longer
            remove_leftovers(os.path.dirname(self.folder), FOLDER_PREFIX)

    def prepare(self, token: str, folder: str) -> None:
        """Start as a worker of a head that is still to come.

        Args:
            token: what proves that this is one of its cluster.
            folder: its private folder, made on this host under the same name, or another if hosts share TMPDIR.
        """
        self.token = token
        try:
            _make_private(folder)
        except FileExistsError:
            folder = _private_folder()
        self._settle(folder)
        self.start()

    def join(self, head: str, own_address: str) -> None:
        """Go on as a worker of this head.

        Args:
            head: its host:port.
            own_address: where other hosts reach this one.
        """
        self._head, self._own_address, self.joined = head, own_address, True
        self._go_on()

    def _go_on(self) -> None:
        """Send Ray's arguments to the process, which has imported Ray meanwhile."""
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, which is seen elsewhere
            self.process.stdin.write(json.dumps(self._arguments()).encode() + b"\n")
            self.process.stdin.close()

    def poll(self) -> bool:
        """Whether Ray is ready, without waiting; `failure` has the reason that it never will be."""
        if self.address is None and self.failure is None and os.path.exists(self._address_file):
            with open(self._address_file, encoding="ascii") as file:
                self.address = file.read().strip() or None
            self.own_processes = self._family()
        if self.address is None and time.monotonic() - self.started > self._limit:
            self.failure = "Ray was not ready after {:.0f} s.\n{}".format(self._limit, self._last_words())
        return self.address is not None

    def ended(self, code: int) -> None:
        """Note that Ray's process has ended by itself; before it was ready, another try may help (a port clash)."""
        if self.address is None and limits.lacks_shared_memory():
            self.failure = "Ray can't start: {}{}{}".format(NO_SHARED_MEMORY, TRY, MAKE_ONE)
            return
        words = self._last_words()
        killed = code == -signal.SIGKILL or "exit code=-9" in words
        self.starved = killed and limits.out_of_memory_kills() > self._kills
        in_time = self._attempts < ATTEMPTS and time.monotonic() - self.started < self._limit
        if self.address is None and in_time and not self.starved:
            self.start()
            return
        why = "was ended by the kernel, for want of memory" if self.starved else "ended by itself"
        self.failure = "Ray {} (exit code {}).\n{}".format(why, code, words)

    @property
    def pid(self) -> Optional[int]:
        return self.process.pid if self.process else None

    @property
    def cpus(self) -> int:
        return int(self._spec.get("cpus") or limits.processors())

    @property
    def _address_file(self) -> str:
        return os.path.join(self._open_folder, "ray_current_cluster")

    def _family(self) -> Set[int]:
        assert self.pid is not None
        return {self.pid} | processes.descendants(self.pid)

    def _folder_to_start_in(self) -> str:
        wanted = str(self._spec.get("working_directory") or "")
        return wanted if os.path.isdir(wanted) else self.folder

    def _variables(self) -> Dict[str, str]:
        token = os.path.join(self.folder, "token")
        with open(token, "w", encoding="ascii") as file:
            file.write(self.token)
        return {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self._open_folder, "LOG_NAME_UPDATE_INTERVAL_S": "0.1", "RAY_DEDUP_LOGS": "0",
            nursery.DOOR: os.path.join(self.folder, "nursery"),
        }  # fmt: skip

    def _program(self) -> List[str]:
        program = path_of("head/ray_node.py")
        return [*container.python_command(self._spec), program, container.watched_parent(self._spec)]

    def _arguments(self) -> List[str]:
        sizes = {"gpus": "num-gpus", "memory": "memory", "object_store_memory": "object-store-memory"}
        chosen = {option: self._spec.get(name) for name, option in sizes.items()}
        return [
            "start", "--block", *self._role(),
            "--temp-dir=" + self._open_folder, "--node-ip-address=" + self._own_address,
            "--num-cpus={}".format(self.cpus),
            *("--{}={}".format(option, int(value)) for option, value in chosen.items() if value is not None),
            "--min-worker-port=0", "--max-worker-port=0",
            "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--no-monitor",
        ]  # fmt: skip

    def _role(self) -> List[str]:
        if self._joins:
            return ["--address=" + self._head]
        if not self._dashboard_host:
            return ["--head", "--port=0", "--include-dashboard=false"]
        self.dashboard = "{}:{}".format(self._dashboard_host, _free_port(self._dashboard_host))
        shown = "--dashboard-host={} --dashboard-port={}".format(*self.dashboard.rsplit(":", 1)).split()
        return ["--head", "--port=0", "--include-dashboard=true", *shown]

    def _last_words(self) -> str:
        files = [os.path.join(self.folder, "ray.log")]
        files += sorted(glob.glob(os.path.join(self._open_folder, "session_latest", "logs", "*.err")))
        return "\n".join(text for text in (tail(path, 1500) for path in files) if text)


def _free_port(host: str) -> int:
    """A free port; where another process takes it first, Ray's next start gets another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _private_folder() -> str:
    wanted = os.environ.get("TMPDIR", "/tmp")
    folder = wanted if len(wanted) <= LONGEST_FOLDER - len("/srf-12345678/r") and os.access(wanted, os.W_OK) else "/tmp"
    made = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=folder)
    note_owner(made)
    return made


def _make_private(folder: str) -> None:
    os.mkdir(folder, 0o700)
    note_owner(folder)
