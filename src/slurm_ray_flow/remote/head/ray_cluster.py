"""Ray on one host of an allocation, from its start until it ends with the head."""

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

START_SECONDS = 180.0
"""Seconds for Ray's start. On a busy or slow host, or from a shared disk, the first start takes long."""
LOOPBACK = "127.0.0.1"
MOST_STARTS = 3
FOLDER_PREFIX = "srf-"
# A socket's path has 107 bytes at most: the folder, "session_2026-11-21_08-20-12_832973_6205/sockets/plasma_store".
LONGEST_FOLDER = 40


class RayCluster:
    """Ray on one host, below a private folder, on ports of its own.

    Args:
        spec: the allocation's spec.json.
        environment: the variables of Ray's processes.
        own_address: this host's address for other hosts; loopback for a cluster of one host.
        is_worker: whether this is a worker, which gets the address of Ray's head later (`join`).
        dashboard_host: the address for Ray's dashboard; "" for none.

    Attributes:
        dashboard: host:port of the dashboard, once Ray is ready; "" for none.
        knows_head: whether the address of Ray's head is known.
        starved: whether the kernel has killed Ray for want of memory.
    """

    def __init__(
        self,
        spec: Dict[str, Any],
        environment: Dict[str, str],
        own_address: str = LOOPBACK,
        is_worker: bool = False,
        dashboard_host: str = "",
    ) -> None:
        self._dashboard_host, self.dashboard = dashboard_host, ""
        self._spec, self._own_address, self._is_worker = spec, own_address, is_worker
        self._user_environment = environment
        self.knows_head = not is_worker
        self.folder, self.token = "", secrets.token_hex(32)
        self.variables: Dict[str, str] = {}
        self._head_address = ""
        if not is_worker:
            self._set_folder(_make_private_folder())
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.address: Optional[str] = None
        self.failure: Optional[str] = None
        self.own_processes: Set[int] = set()
        self.starved, self._kills_before = False, limits.out_of_memory_kills()
        self.start_time = time.monotonic()
        self._starts = 0

    def _set_folder(self, folder: str) -> None:
        self.folder = folder
        self._temp_folder = os.path.join(self.folder, "r")  # Ray gives its own folder mode 0777
        self.variables = self._variables()
        self._environment = container.python_variables(self._spec, {**self._user_environment, **self.variables})

    def start(self) -> None:
        """Start Ray; `poll` says when it is ready. A worker waits for the address of Ray's head first."""
        self._starts += 1
        with contextlib.suppress(OSError):
            os.unlink(self._address_file)
        with open(os.path.join(self.folder, "ray.log"), "ab") as output:
            self.process = subprocess.Popen(
                [*self._program(), "-"], env=self._environment, cwd=self._start_folder(),
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if self.knows_head:
            self._send_arguments()
        if self._starts == 1:  # meanwhile Ray is imported, which takes longer
            remove_leftovers(os.path.dirname(self.folder), FOLDER_PREFIX)

    def prepare(self, token: str, folder: str) -> None:
        """Start a worker before the address of Ray's head is known.

        Args:
            token: the Ray cluster's secret.
            folder: the path of Ray's private folder on its head's host. If hosts share it, this one makes another.
        """
        self.token = token
        try:
            _make_folder(folder)
        except FileExistsError:
            folder = _make_private_folder()
        self._set_folder(folder)
        self.start()

    def join(self, head_address: str, own_address: str) -> None:
        """Join Ray's head as a worker.

        Args:
            head_address: its host:port.
            own_address: this host's address for other hosts.
        """
        self._head_address, self._own_address, self.knows_head = head_address, own_address, True
        self._send_arguments()

    def _send_arguments(self) -> None:
        """Send Ray's arguments to the process, which has imported Ray."""
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(OSError):  # the process has ended, and `ended` gets its exit code
            self.process.stdin.write(json.dumps(self._arguments()).encode() + b"\n")
            self.process.stdin.close()

    def poll(self) -> bool:
        """Whether Ray is ready, without waiting. Sets `failure` if Ray was not ready in time."""
        if self.address is None and self.failure is None and os.path.exists(self._address_file):
            with open(self._address_file, encoding="ascii") as file:
                self.address = file.read().strip() or None
            self.own_processes = self._own_pids()
        if self.address is None and time.monotonic() - self.start_time > START_SECONDS:
            self.failure = "Ray was not ready after {:.0f} s.\n{}".format(START_SECONDS, self._log_ends())
        return self.address is not None

    def ended(self, exit_code: int) -> None:
        """Note that Ray's process has ended. If Ray was not ready, start it again: there may have been a port clash."""
        if self.address is None and limits.lacks_shared_memory():
            self.failure = "Ray can't start: {}{}{}".format(NO_SHARED_MEMORY, TRY, MAKE_ONE)
            return
        log_ends = self._log_ends()
        killed = exit_code == -signal.SIGKILL or "exit code=-9" in log_ends
        self.starved = killed and limits.out_of_memory_kills() > self._kills_before
        in_time = self._starts < MOST_STARTS and time.monotonic() - self.start_time < START_SECONDS
        if self.address is None and in_time and not self.starved:
            self.start()
            return
        why = "was ended by the kernel, for want of memory" if self.starved else "ended by itself"
        self.failure = "Ray {} (exit code {}).\n{}".format(why, exit_code, log_ends)

    @property
    def pid(self) -> Optional[int]:
        return self.process.pid if self.process else None

    @property
    def cpus(self) -> int:
        return int(self._spec.get("cpus") or limits.processors())

    @property
    def _address_file(self) -> str:
        return os.path.join(self._temp_folder, "ray_current_cluster")

    def _own_pids(self) -> Set[int]:
        assert self.pid is not None
        return {self.pid} | processes.descendants(self.pid)

    def _start_folder(self) -> str:
        folder = str(self._spec.get("working_directory") or "")
        return folder if os.path.isdir(folder) else self.folder

    def _variables(self) -> Dict[str, str]:
        token_path = os.path.join(self.folder, "token")
        with open(token_path, "w", encoding="ascii") as file:
            file.write(self.token)
        return {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_path, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self._temp_folder, "LOG_NAME_UPDATE_INTERVAL_S": "0.1", "RAY_DEDUP_LOGS": "0",
            nursery.SOCKET_VARIABLE: os.path.join(self.folder, "nursery"),
        }  # fmt: skip

    def _program(self) -> List[str]:
        program = path_of("head/ray_node.py")
        return [*container.python_command(self._spec), program, container.watched_parent(self._spec)]

    def _arguments(self) -> List[str]:
        options = {"gpus": "num-gpus", "memory": "memory", "object_store_memory": "object-store-memory"}
        values = {option: self._spec.get(name) for name, option in options.items()}
        return [
            "start", "--block", *self._role(),
            "--temp-dir=" + self._temp_folder, "--node-ip-address=" + self._own_address,
            "--num-cpus={}".format(self.cpus),
            *("--{}={}".format(option, int(value)) for option, value in values.items() if value is not None),
            "--min-worker-port=0", "--max-worker-port=0",
            "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--no-monitor",
        ]  # fmt: skip

    def _role(self) -> List[str]:
        if self._is_worker:
            return ["--address=" + self._head_address]
        if not self._dashboard_host:
            return ["--head", "--port=0", "--include-dashboard=false"]
        self.dashboard = "{}:{}".format(self._dashboard_host, _free_port(self._dashboard_host))
        address = "--dashboard-host={} --dashboard-port={}".format(*self.dashboard.rsplit(":", 1)).split()
        return ["--head", "--port=0", "--include-dashboard=true", *address]

    def _log_ends(self) -> str:
        files = [os.path.join(self.folder, "ray.log")]
        files += sorted(glob.glob(os.path.join(self._temp_folder, "session_latest", "logs", "*.err")))
        return "\n".join(text for text in (tail(path, 1500) for path in files) if text)


def _free_port(host: str) -> int:
    """A free port. If another process takes it before Ray does, Ray's next start gets another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _make_private_folder() -> str:
    parent = os.environ.get("TMPDIR", "/tmp")
    if len(parent) > LONGEST_FOLDER - len("/srf-12345678/r") or not os.access(parent, os.W_OK):
        parent = "/tmp"
    folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent)
    note_owner(folder)
    return folder


def _make_folder(folder: str) -> None:
    os.mkdir(folder, 0o700)
    note_owner(folder)
