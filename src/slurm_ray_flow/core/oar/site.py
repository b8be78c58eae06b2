"""An OAR site by `oarnodes` and the jobs of all users, and whether a request fits to it."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from slurm_ray_flow.core.cluster_report import CheckResult, Load, PartitionTable
from slurm_ray_flow.core.errors import Rejected
from slurm_ray_flow.core.scheduler import JobRequest, SiteDialect

_HOLDING = ("toLaunch", "Launching", "Running", "Suspended", "Resuming", "Finishing", "toError")
"""The states of jobs that hold their resources."""
_GPU = ("gpu", "gpudevice", "gpu_id")
"""The properties by which sites name a resource's GPU."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        state: OAR's word for its resources: "Alive", "Suspected", "Absent", "Dead", "Drain"; the worst one counts.
        cores: the number of its cores.
        taken: how many of them jobs hold.
        gpus: the number of its GPUs.
        gpus_taken: how many of them jobs hold.
        best_effort: whether it takes best-effort jobs.
    """

    name: str
    state: str
    cores: int
    taken: int
    gpus: int
    gpus_taken: int
    best_effort: bool


@dataclasses.dataclass(frozen=True)
class Site:
    """The nodes of a site, and its version of OAR; "" where it is not known."""

    nodes: tuple[Node, ...]
    version: str = ""

    @property
    def usable(self) -> list[Node]:
        """The nodes that take jobs."""
        return [node for node in self.nodes if node.state == "Alive"]


def parse_site(resources: str, jobs: str, version: str = "") -> Site:
    """The site from the answers to the site's commands."""
    taken = {number for job in objects(jobs) if job.get("state") in _HOLDING for number in _numbers(job)}
    by_node: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for resource in objects(resources):
        if resource.get("type", "default") == "default" and resource.get("network_address"):
            by_node[str(resource["network_address"])].append(resource)
    match = re.search(r"version *: *(\d+\.\d+\S*)", version)
    nodes = tuple(_node(name, rows, taken) for name, rows in sorted(by_node.items()))
    return Site(nodes, match[1] if match else "")


def objects(text: str) -> list[Mapping[str, Any]]:
    """The objects of an answer: a dictionary by id, or in OAR 3 a list."""
    try:
        answer = json.loads(text) if text.strip() else {}
    except ValueError:
        return []
    values = answer.values() if isinstance(answer, dict) else answer
    return [value for value in values if isinstance(value, dict)]


def _numbers(job: Mapping[str, Any]) -> list[int]:
    return [int(number) for number in job.get("assigned_resources") or []]


def _node(name: str, rows: list[Mapping[str, Any]], taken: set[int]) -> Node:
    states = [str(row.get("state")) for row in rows]
    drained = any(row.get("drain") == "YES" for row in rows)
    gpus = {gpu for row in rows if (gpu := _gpu(row)) is not None}
    busy = [row for row in rows if int(row.get("resource_id", 0)) in taken]
    return Node(
        name=name,
        state="Drain" if drained else next((state for state in states if state != "Alive"), "Alive"),
        cores=len(rows),
        taken=len(busy),
        gpus=len(gpus),
        gpus_taken=len({gpu for row in busy if (gpu := _gpu(row)) is not None}),
        best_effort=any(row.get("besteffort") == "YES" for row in rows),
    )


def _gpu(row: Mapping[str, Any]) -> str | None:
    """The GPU of a resource; sites write "", "0", "NO" or -1 where it has none."""
    for name in _GPU:
        value = str(row.get(name, ""))
        if value not in ("", "NO", "None", "-1") and not (name == "gpu" and value == "0"):
            return value
    return None


def check(request: JobRequest, site: Site, where: str = "") -> None:
    """Check that enough nodes have what each node of the job needs. The site's rules and queues are left to oarsub.

    Raises:
        Rejected: there are not; with the number that there are.
    """
    if not site.nodes:
        return
    cores, gpus = max(node.cores for node in site.nodes), max(node.gpus for node in site.nodes)
    if (request.cpus_per_node or 0) > cores:
        raise Rejected(
            f"cpus_per_node={request.cpus_per_node} is more than a node has: {cores}",
            where=where,
            advice=f"ask for {cores} or fewer, and for more nodes=",
        )
    if request.gpus_per_node > gpus:
        has = f"{gpus}" if gpus else "none"
        raise Rejected(
            f"gpus_per_node={request.gpus_per_node} is more than a node has: {has}",
            where=where,
            advice="ask for fewer GPUs; `srf clusters NAME` shows them",
        )
    wanted_cores, wanted_gpus = request.cpus_per_node or 1, request.gpus_per_node
    fitting = sum(node.cores >= wanted_cores and node.gpus >= wanted_gpus for node in site.nodes)
    if request.nodes > fitting:
        raise Rejected(
            f"nodes={request.nodes} is more than the site has of such nodes: {fitting}",
            where=where,
            advice="ask for fewer nodes=; `srf clusters NAME` shows them",
        )


def finding(site: Site, request: JobRequest) -> CheckResult:
    """Whether the site accepts a job that requests no more than the cluster's block says."""
    name, version = "oar", site.version or "of unknown version"
    if not site.nodes:
        return CheckResult(name, "warning", "it shows no node", "`oarnodes` there says whether there are any")
    try:
        check(request, site)
    except Rejected as error:
        return CheckResult(name, "failed", error.what, error.advice)
    if not site.usable:
        return CheckResult(name, "warning", f"{version}; no node takes jobs now", "`oarnodes -s` there says why")
    target = f"queue {request.partition}" if request.partition else "the default queue"
    return CheckResult(name, "ok", f"{version}, {_count(len(site.usable), 'node')} in service; jobs go to {target}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def load(site: Site, partition: str) -> Load:
    """The load of all nodes that take jobs: OAR's queues share them."""
    nodes = site.usable
    return Load(
        partition=partition,
        cpus=sum(node.cores for node in nodes),
        busy=sum(node.taken for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        gpus_taken=sum(node.gpus_taken for node in nodes),
    )


def node_table(site: Site) -> PartitionTable:
    """A row for all nodes that are alike; the values for scripts have each node."""
    alike: dict[tuple[int, int, bool], list[Node]] = collections.defaultdict(list)
    for node in site.nodes:
        alike[node.cores, node.gpus, node.best_effort].append(node)
    rows = [
        [
            str(len(nodes)),
            str(cores),
            str(gpus or ""),
            _now(nodes),
            "best-effort jobs, too" if best_effort else "",
            ", ".join(node.name for node in nodes[:4]) + (", …" if len(nodes) > 4 else ""),
        ]
        for (cores, gpus, best_effort), nodes in alike.items()
    ]
    values = {"oar": site.version, "nodes": [dataclasses.asdict(node) for node in site.nodes]}
    return PartitionTable(["NODES", "CORES", "GPUS", "NOW", "NOTES", "NAMES"], rows, values)


def _now(nodes: list[Node]) -> str:
    usable = [node for node in nodes if node.state == "Alive"]
    cores = sum(node.cores for node in usable)
    load = [f"{100 * sum(node.taken for node in usable) // cores} % of cores taken"] if cores else []
    states = collections.Counter(node.state.lower() for node in nodes)
    return ", ".join([*load, *(f"{number} {state}" for state, number in sorted(states.items()))])


DIALECT = SiteDialect(
    commands={"resources": ["oarnodes", "-J"], "jobs": ["oarstat", "-J"], "version": ["oarstat", "-V"]},
    counted=("resources", "jobs"),
    parse=parse_site,
    check=check,
    finding=finding,
    load=load,
    table=node_table,
    advice="`oarnodes -s` there says more; try again later",
)
