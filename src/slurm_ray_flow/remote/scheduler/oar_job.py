"""The OAR job that a head runs in, by its variables and the files that they name."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.scheduler.job import JobContext
from slurm_ray_flow.remote.scheduler.node_launcher import NodeLauncher, Oarsh
from slurm_ray_flow.remote.shared.events import RunFiles


class OarJob(JobContext):
    """A job of OAR's. OAR ends a job by SIGKILL: a signal that the head sees is a person's or home's."""

    name = "OAR"
    VARIABLE = "OAR_JOB_ID"
    control_group = "/oar/"

    def described(self) -> Dict[str, Any]:
        return {
            "job": os.environ[self.VARIABLE],
            "nodelist": " ".join(self.nodes()),
            "partition": "",
            "node": self.node_name(),
        }

    def node_name(self) -> str:
        """The name in the job's list of nodes, which may be longer than the host's own."""
        own = socket.gethostname().partition(".")[0]
        return next((name for name in _resources() if name.partition(".")[0] == own), super().node_name())

    def nodes(self) -> List[str]:
        own = self.node_name()
        return [own, *(name for name in dict.fromkeys(_resources()) if name != own)]

    def launcher(self) -> NodeLauncher:
        return Oarsh()

    def cpus(self) -> Optional[int]:
        """A line of the file is a resource, which is a core on most sites."""
        return _resources().count(self.node_name()) or None

    def memory(self, cpus: Optional[int]) -> Optional[int]:
        """OAR does not count memory: the job's share of the node's is that of its cores."""
        total, cores = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), os.cpu_count()
        return total * min(cpus, cores) // cores if cpus and cores else None

    def remaining(self) -> Optional[float]:
        """OAR writes the file of the job's resources when the job begins."""
        walltime, file = os.environ.get("OAR_JOB_WALLTIME_SECONDS", ""), os.environ.get("OAR_NODEFILE", "")
        try:
            return os.stat(file).st_mtime + int(walltime) - time.time()
        except (OSError, ValueError):
            return None

    def why_ended(self, run: RunFiles, signal_name: str) -> Tuple[str, str]:  # noqa: ARG002 - OAR itself kills
        if os.path.exists(run.cancel):
            return "cancelled", "The run was cancelled."
        number = os.environ.get(self.VARIABLE, "")
        return "cancelled", "Job {} was signalled in OAR by somebody, not through this package.".format(number)


def _resources() -> List[str]:
    """The name of the node of each of the job's resources."""
    try:
        with open(os.environ.get("OAR_NODEFILE", ""), encoding="utf-8") as file:
            return file.read().split()
    except OSError:
        return []
