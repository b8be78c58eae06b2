"""The seam to the scheduler on the cluster: what a head knows of the job that it runs in."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.scheduler.node_launcher import NodeLauncher
from slurm_ray_flow.remote.shared.events import RunFiles

_MIB = 1 << 20
MARGIN = 5.0
"""Seconds before the scheduler's own limit at which the run ends itself."""
LOOPBACK = "127.0.0.1"


class JobContext:
    """The job that this process is in; each scheduler has a class of its own. What is not known is left to the default.

    Attributes:
        name: what people call the scheduler.
        VARIABLE: the variable that is there in such a job, and nowhere else.
        control_group: what stands in the path of such a job's own control groups; "" where it has none.
    """

    name = "the scheduler"
    VARIABLE = ""
    control_group = ""

    def described(self) -> Dict[str, Any]:
        """What the event `allocated` says of the job: its id as `job`, this node as `node`."""
        return {"node": self.node_name()}

    def node_name(self) -> str:
        """This node as the scheduler calls it."""
        return socket.gethostname()

    def nodes(self) -> List[str]:
        """The job's nodes as the scheduler calls them; this one is the first."""
        return [self.node_name()]

    def others(self) -> List[str]:
        """The nodes of this job besides this one."""
        return [name for name in self.nodes() if name != self.node_name()]

    def launcher(self) -> NodeLauncher:
        """What starts a program on the other nodes."""
        raise NotImplementedError

    def submit_host(self) -> str:
        """The host from which the job was submitted; "" where that is not known."""
        return ""

    def cpus(self) -> Optional[int]:
        """How many CPUs of this node the job has."""
        return None

    def memory(self, cpus: Optional[int]) -> Optional[int]:  # noqa: ARG002 - sites may count memory by CPUs
        """How many bytes of this node the job has, with so many CPUs."""
        return None

    def granted(self, seconds: float) -> float:
        """What the scheduler makes of a time limit."""
        return seconds

    def remaining(self) -> Optional[float]:
        """Seconds to the job's end, where the user left that to the scheduler."""
        return None

    def is_preempted(self) -> bool:
        """Whether the scheduler has begun to take the nodes back for another job."""
        return False

    def why_ended(self, run: RunFiles, signal_name: str) -> Tuple[str, str]:  # noqa: ARG002 - nothing else is known
        """Cause and message for a signal that ends the head."""
        return "cancelled", "The head was told to end by {}.".format(signal_name)

    # ---- the same for all

    def with_share(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        """The spec with what the job has of this node and of time, where the user left that to the scheduler."""
        cpus = spec.get("cpus") or self.cpus()
        memory = spec.get("memory") or self.memory(cpus)
        store = spec.get("object_store_memory") or _object_store(memory)
        share = {"cpus": cpus, "memory": memory, "object_store_memory": store}
        wanted, lasts = spec.get("time_limit"), self._lasts(spec)
        limits = [float(limit) for limit in (wanted, lasts) if limit is not None]
        return {**spec, **share, "time_limit": min(limits, default=None), "lasts": lasts}

    def _lasts(self, spec: Dict[str, Any]) -> Optional[float]:
        """Seconds until a little before the job's end, so that the run's end is told by us."""
        limit, idle = spec.get("time_limit"), float(spec.get("keep_warm") or 0.0)
        whole = self.remaining() if limit is None else self.granted(float(limit) + idle)
        return None if whole is None else whole - MARGIN

    def address_for_login(self) -> str:
        """This node's address as the node reaches it from which the job was submitted."""
        for towards in (self.submit_host(), self.node_name()):
            with contextlib.suppress(OSError):
                if towards:
                    return own_address(towards)
        return LOOPBACK


class NoJob(JobContext):
    """No job: the head was started by home itself, or nothing is known of the scheduler that started it."""

    def described(self) -> Dict[str, Any]:
        return {}

    def with_share(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        return spec

    def address_for_login(self) -> str:
        return LOOPBACK


def own_address(towards: str) -> str:
    """This node's address as another node of the job reaches it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it only asks which way it would go
        return str(probe.getsockname()[0])


def _object_store(memory: Optional[int]) -> Optional[int]:
    """Three tenths, as Ray itself takes of a machine; it looks at the machine, and not at the job's share."""
    return None if memory is None else max(80 * _MIB, memory * 3 // 10)
