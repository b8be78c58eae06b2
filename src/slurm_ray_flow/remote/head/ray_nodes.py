"""The Ray cluster of an allocation: Ray's head on this host, its workers on the other nodes."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.head.ray_cluster import LOOPBACK, RayCluster
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.scheduler.job import JobContext, own_address
from slurm_ray_flow.remote.scheduler.node_launcher import NodeWorkers
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.files import write

Fields = Dict[str, Any]


class RayNodes:
    """Ray on all nodes of an allocation.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        environment: the variables of Ray's processes.

    Attributes:
        other_nodes: the scheduler's names of the other nodes.
        address: host:port of Ray's head, once all nodes are ready.
        failure: the reason why Ray can't become ready or has ended, or None.
    """

    def __init__(self, run: RunFiles, spec: Dict[str, Any], environment: Dict[str, str]) -> None:
        self._run, self._spec = run, spec
        self._job = context_of(spec)
        self.other_nodes = self._job.others() if int(spec.get("nodes") or 1) > 1 else []
        self._workers: Optional[NodeWorkers] = None
        address = own_address(self.other_nodes[0]) if self.other_nodes else LOOPBACK
        # In a job, the login node must reach the dashboard, and Ray's token keeps other users out.
        dashboard_host = self._job.address_for_login() if spec.get("dashboard") else ""
        self._ray_head = RayCluster(spec, environment, address, dashboard_host=dashboard_host)
        self.address: Optional[str] = None

    def start(self) -> None:
        """Start Ray; `poll` says when it is ready."""
        if self.other_nodes:
            self._workers = NodeWorkers(self._run, self.other_nodes, self._job.launcher())
            self._workers.prepare(self._ray_head.token, self._ray_head.folder)
        self._ray_head.start()

    def poll(self) -> bool:
        """Whether Ray is ready on all nodes, without waiting."""
        if self.address is None and self._ray_head.poll():
            assert self._ray_head.address is not None
            if self._workers is None:
                self.address = self._ray_head.address
            else:
                self._workers.join(self._ray_head.address)
                self._workers.listen()
                self.address = self._ray_head.address if self._workers.all_ready else None
            if self.address and self._ray_head.dashboard:  # the file's readers are those of the run's folder
                dashboard = {"address": self._ray_head.dashboard, "token": self._ray_head.token}
                write(self._run.dashboard, json.dumps(dashboard).encode())
        return self.address is not None

    def new_losses(self) -> Dict[str, str]:
        """The nodes that were lost since the last call, with the reasons. Ray goes on without them if it can."""
        return {name: self.lost[name] for name in self._workers.listen()} if self._workers and self.address else {}

    def call_begins(self) -> None:
        """Have the other nodes measure a call's use."""
        if self._workers is not None:
            self._workers.call_begins()

    def uses(self) -> List[Dict[str, Any]]:
        """The call's use on each of the other nodes."""
        return self._workers.uses() if self._workers is not None else []

    def ended(self, pid: int, exit_code: int) -> None:
        """Note that a process has ended, if it is Ray's."""
        if pid == self._ray_head.pid:
            self._ray_head.ended(exit_code)
        elif self._workers is not None:
            self._workers.ended(pid, exit_code)

    def end(self) -> None:
        """End Ray on the other nodes."""
        if self._workers is not None:
            self._workers.end()

    @property
    def failure(self) -> Optional[str]:
        return self._ray_head.failure or (self._workers.failure if self._workers and self.address is None else None)

    @property
    def starved(self) -> bool:
        """Whether the kernel has killed Ray on a node for want of memory."""
        return self._ray_head.starved or (self._workers is not None and self._workers.starved)

    @property
    def lost(self) -> Dict[str, str]:
        """The lost nodes, with the reason of each."""
        return self._workers.lost if self._workers else {}

    @property
    def start_time(self) -> float:
        """The time of the start, by `time.monotonic`."""
        return self._ray_head.start_time

    @property
    def folder(self) -> str:
        """Ray's private folder, the same on all nodes."""
        return self._ray_head.folder

    @property
    def variables(self) -> Dict[str, str]:
        """The variables that a driver needs to join."""
        return self._ray_head.variables

    @property
    def pids(self) -> List[int]:
        """Ray's processes that are children of this one."""
        pids = [self._ray_head.pid, *(self._workers.pids if self._workers else [])]
        return [pid for pid in pids if pid is not None]

    @property
    def own_processes(self) -> Set[int]:
        """Ray's own processes on this host."""
        return self._ray_head.own_processes | set(self._workers.pids if self._workers else [])

    def described(self) -> Fields:
        """The fields of the event `ray_ready`."""
        cpus = {name: message["cpus"] for name, message in self._workers.ready.items()} if self._workers else {}
        fields: Fields = {"address": self.address, "cpus": self._ray_head.cpus + sum(cpus.values())}
        if self._ray_head.dashboard:
            fields["dashboard"] = self._ray_head.dashboard
        fields["gpus"] = int(self._spec.get("gpus") or 0) * (1 + len(cpus))
        return {**fields, "nodes": [self._job.node_name(), *cpus]} if cpus else fields


def with_loss_cause(end_fields: Fields, usage: Fields, ray: RayNodes, job: JobContext) -> Fields:
    """The fields of `call_ended` with the cause of the loss of Ray's processes.

    Args:
        end_fields: the fields by the driver's report.
        usage: the call's use, with `memory_kills`.
        ray: the allocation's Ray.
        job: the allocation's job.
    """
    message = "; ".join("node {} was lost: {}".format(*loss) for loss in ray.lost.items())
    if ray.starved or usage["memory_kills"]:
        message, cause = message or "The kernel ended a process of Ray, for want of memory.", "out_of_memory"
    elif not message:
        return end_fields
    else:
        # A preemption with grace first ends the steps on other nodes, and sends the batch script its signal later.
        cause = "preempted" if job.is_preempted() else "node_failed"
    return {**end_fields, "cause": cause, "message": "{}\n{}".format(message, end_fields["message"])}
