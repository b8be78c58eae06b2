"""The interface of schedulers on the cluster: what a head can find out about its job."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.scheduler.node_launcher import NodeLauncher
from slurm_ray_flow.remote.shared.events import RunFiles

_MIB = 1 << 20
MARGIN = 5.0
"""Seconds before the scheduler's limit at which the head ends the run."""
LOOPBACK = "127.0.0.1"


class JobContext:
    """The job that this process is in. Each scheduler has a subclass; the defaults stand for unknown facts.

    Attributes:
        name: the scheduler's name for people.
        VARIABLE: the environment variable that only such a job has.
        control_group: the part of a path that marks the control groups of such a job; "" if it has none.
    """

    name = "the scheduler"
    VARIABLE = ""
    control_group = ""

    def described(self) -> Dict[str, Any]:
        """The job's fields of the event `allocated`: its id as `job`, this node as `node`."""
        return {"node": self.node_name()}

    def node_name(self) -> str:
        """The scheduler's name of this node."""
        return socket.gethostname()

    def nodes(self) -> List[str]:
        """The scheduler's names of the job's nodes, this node first."""
        return [self.node_name()]

    def others(self) -> List[str]:
        """The nodes of this job besides this one."""
        return [name for name in self.nodes() if name != self.node_name()]

    def launcher(self) -> NodeLauncher:
        """The launcher of programs on the other nodes."""
        raise NotImplementedError

    def submit_host(self) -> str:
        """The host from which the job was submitted; "" if unknown."""
        return ""

    def cpus(self) -> Optional[int]:
        """The number of CPUs that the job has on this node."""
        return None

    def memory(self, cpus: Optional[int]) -> Optional[int]:  # noqa: ARG002 - sites may count memory by CPUs
        """The bytes of memory that the job has on this node, with so many CPUs."""
        return None

    def granted(self, seconds: float) -> float:
        """The seconds that the scheduler grants for a time limit."""
        return seconds

    def remaining(self) -> Optional[float]:
        """Seconds to the job's end, for a run without a time limit."""
        return None

    def is_preempted(self) -> bool:
        """Whether the scheduler has begun to take the nodes back for another job."""
        return False

    def why_ended(self, run: RunFiles, signal_name: str) -> Tuple[str, str]:  # noqa: ARG002 - nothing else is known
        """Cause and message of the end by a signal."""
        return "cancelled", "The head was told to end by {}.".format(signal_name)

    # ---- the same for all

    def with_share(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        """The spec with the job's resources on this node and its time, where the user has set none."""
        cpus = spec.get("cpus") or self.cpus()
        memory = spec.get("memory") or self.memory(cpus)
        store = spec.get("object_store_memory") or _object_store(memory)
        share = {"cpus": cpus, "memory": memory, "object_store_memory": store}
        wanted, lasting = spec.get("time_limit"), self._seconds_to_end(spec)
        times = [float(limit) for limit in (wanted, lasting) if limit is not None]
        return {**spec, **share, "time_limit": min(times, default=None), "lasts": lasting}

    def _seconds_to_end(self, spec: Dict[str, Any]) -> Optional[float]:
        """Seconds until `MARGIN` before the job's end, so that the head can record the run's end."""
        limit, keep_warm = spec.get("time_limit"), float(spec.get("keep_warm") or 0.0)
        total = self.remaining() if limit is None else self.granted(float(limit) + keep_warm)
        return None if total is None else total - MARGIN

    def address_for_login(self) -> str:
        """This node's address for the host from which the job was submitted."""
        for destination in (self.submit_host(), self.node_name()):
            with contextlib.suppress(OSError):
                if destination:
                    return own_address(destination)
        return LOOPBACK


class NoJob(JobContext):
    """No job: home has started the head itself, or the scheduler is unknown."""

    def described(self) -> Dict[str, Any]:
        return {}

    def with_share(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        return spec

    def address_for_login(self) -> str:
        return LOOPBACK


def own_address(destination: str) -> str:
    """This node's address for another node of the job."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))  # sends nothing, and only chooses the route
        return str(probe.getsockname()[0])


def _object_store(memory: Optional[int]) -> Optional[int]:
    """Three tenths of the job's memory; Ray's own default is three tenths of the machine's."""
    return None if memory is None else max(80 * _MIB, memory * 3 // 10)
