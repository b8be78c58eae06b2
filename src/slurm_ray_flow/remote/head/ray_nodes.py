"""The Ray cluster of an allocation: its head on this host, its workers on the others, ready when all of them are."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.head.ray_cluster import LOOPBACK, RayCluster
from slurm_ray_flow.remote.scheduler.contexts import context_of
from slurm_ray_flow.remote.scheduler.job import JobContext, own_address
from slurm_ray_flow.remote.scheduler.node_launcher import NodeWorkers
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.files import write


class RayNodes:
    """Ray on all hosts of an allocation.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        environment: the variables that Ray's processes get.

    Attributes:
        others: the other hosts, as the scheduler calls them.
        address: host:port of its head, once all nodes are ready.
        failure: why there is no Ray; None where there is, or may be.
    """

    def __init__(self, run: RunFiles, spec: Dict[str, Any], environment: Dict[str, str]) -> None:
        self._run, self._spec = run, spec
        self._job = context_of(spec)
        self.others = self._job.others() if int(spec.get("nodes") or 1) > 1 else []
        self._nodes: Optional[NodeWorkers] = None
        address = own_address(self.others[0]) if self.others else LOOPBACK
        # In a job the address that the login node can reach, where Ray's token keeps others out; else loopback.
        host = self._job.address_for_login() if spec.get("dashboard") else ""
        self._head = RayCluster(spec, environment, address, dashboard_host=host)
        self.address: Optional[str] = None

    def start(self) -> None:
        """Start Ray; `poll` says when it is ready."""
        if self.others:
            self._nodes = NodeWorkers(self._run, self.others, self._job.launcher())
            self._nodes.prepare(self._head.token, self._head.folder)
        self._head.start()

    def poll(self) -> bool:
        """Whether Ray is ready on all hosts, without waiting."""
        if self.address is None and self._head.poll():
            assert self._head.address is not None
            if self._nodes is None:
                self.address = self._head.address
            else:
                self._nodes.join(self._head.address)
                self._nodes.listen()
                self.address = self._head.address if self._nodes.all_ready else None
            if self.address and self._head.dashboard:  # the token is for those who may read the run's folder
                known = {"address": self._head.dashboard, "token": self._head.token}
                write(self._run.dashboard, json.dumps(known).encode())
        return self.address is not None

    def newly_lost(self) -> Dict[str, str]:
        """The nodes that have been lost since the last time, and why. Ray goes on without them, if it can."""
        return {name: self.lost[name] for name in self._nodes.listen()} if self._nodes and self.address else {}

    def call_begins(self) -> None:
        """Have the other nodes measure a call's use."""
        if self._nodes is not None:
            self._nodes.call_begins()

    def uses(self) -> List[Dict[str, Any]]:
        """The call's use on each of the other nodes."""
        return self._nodes.uses() if self._nodes is not None else []

    def ended(self, pid: int, code: int) -> None:
        """Note that a process has ended, if it is Ray's."""
        if pid == self._head.pid:
            self._head.ended(code)
        elif self._nodes is not None:
            self._nodes.ended(pid, code)

    def end(self) -> None:
        """Have the other nodes leave."""
        if self._nodes is not None:
            self._nodes.end()

    @property
    def failure(self) -> Optional[str]:
        return self._head.failure or (self._nodes.failure if self._nodes and self.address is None else None)

    @property
    def starved(self) -> bool:
        """Whether Ray ended on a node because the kernel found too little memory there."""
        return self._head.starved or (self._nodes is not None and self._nodes.starved)

    @property
    def lost(self) -> Dict[str, str]:
        """The lost nodes, with the reason of each."""
        return self._nodes.lost if self._nodes else {}

    @property
    def started(self) -> float:
        """The time of the start, by `time.monotonic`."""
        return self._head.started

    @property
    def folder(self) -> str:
        """Ray's private folder, the same on all nodes."""
        return self._head.folder

    @property
    def variables(self) -> Dict[str, str]:
        """The variables by which a driver joins."""
        return self._head.variables

    @property
    def pids(self) -> List[int]:
        """Ray's processes that are children of this one."""
        found = [self._head.pid, *(self._nodes.pids if self._nodes else [])]
        return [pid for pid in found if pid is not None]

    @property
    def own_processes(self) -> Set[int]:
        """Ray's own processes on this host."""
        return self._head.own_processes | set(self._nodes.pids if self._nodes else [])

    def described(self) -> Dict[str, Any]:
        """The fields of the event `ray_ready`."""
        cpus = {name: said["cpus"] for name, said in self._nodes.ready.items()} if self._nodes else {}
        whole: Dict[str, Any] = {"address": self.address, "cpus": self._head.cpus + sum(cpus.values())}
        if self._head.dashboard:
            whole["dashboard"] = self._head.dashboard
        whole["gpus"] = int(self._spec.get("gpus") or 0) * (1 + len(cpus))
        return {**whole, "nodes": [self._job.node_name(), *cpus]} if cpus else whole


def blamed(ended: Dict[str, Any], used: Dict[str, Any], ray: RayNodes, job: JobContext) -> Dict[str, Any]:
    """The fields of `call_ended` with the cause that the loss had.

    Args:
        ended: the fields as the call itself gave them.
        used: what the call used, with `memory_kills`.
        ray: the allocation's Ray.
        job: the job that this is.
    """
    what = "; ".join("node {} was lost: {}".format(*one) for one in ray.lost.items())
    if ray.starved or used["memory_kills"]:
        what, cause = what or "The kernel ended a process of Ray, for want of memory.", "out_of_memory"
    elif not what:
        return ended
    else:
        # A preemption with grace ends the other nodes' steps first, and tells the batch script only afterwards.
        cause = "preempted" if job.is_preempted() else "node_failed"
    return {**ended, "cause": cause, "message": "{}\n{}".format(what, ended["message"])}
