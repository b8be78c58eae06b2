"""How busy a cluster is, and who waits there: one line about each, asked side by side, none waited for too long."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.slurm.sites import FRESH_SECONDS, site
from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
from slurm_ray_flow.core.errors import LogInFailed
from slurm_ray_flow.core.slurm.queue import parse_queue, queue_command
from slurm_ray_flow.tasks.asked import Asked

SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Load:
    """What a cluster says of itself.

    Attributes:
        state: "up", "away" (it can't be reached) or "locked" (it wants to know something that a user would type).
        why: why it is not up; "" where it is.
        cpus: how many there are, of a Slurm cluster in the partition that jobs go to; None where that is not known.
        busy: how many of them are in use.
        partition: that partition; "" elsewhere.
        gpus, gpus_taken: of that partition.
        slots, slots_free: of a server that is shared under a lock; None without one.
        holders: who holds it: user, since when, run.
        running, waiting: runs, or one's own jobs, that are at work and that wait.
    """

    state: str = "up"
    why: str = ""
    cpus: int | None = None
    busy: float | None = None
    partition: str = ""
    gpus: int | None = None
    gpus_taken: int | None = None
    slots: int | None = None
    slots_free: int | None = None
    holders: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    running: int | None = None
    waiting: int | None = None


def loads(clusters: Sequence[Cluster], seconds: float = SECONDS) -> list[Load]:
    """Ask all of them at once; one that does not answer in time is away, and nobody is asked for a password."""
    asked = [Asked(functools.partial(load, cluster)) for cluster in clusters]
    deadline = time.monotonic() + seconds
    for one in asked:
        one.wait(deadline)
    return [one.answer or Load(_state(one.error), one.why) for one in asked]


def _state(error: Exception | None) -> str:
    return "locked" if isinstance(error, LogInFailed) else "away"


def load(cluster: Cluster) -> Load:
    """How busy it is.

    Raises:
        SlurmRayFlowError: it can't be asked.
    """
    if isinstance(cluster, SlurmCluster):
        return _of_slurm(cluster)
    machine = cluster.ask("machines.load")
    known = Load(cpus=machine["cpus"], busy=machine["busy"])
    if cluster.lock is None:
        return known
    queue = cluster.ask("queue.state", path=cluster.lock.path, slots=cluster.lock.slots)
    return dataclasses.replace(
        known,
        slots=queue["slots"],
        slots_free=queue["free"],
        holders=list(queue["holders"]),
        running=len(queue["holders"]),
        waiting=len(queue["waiting"]),
    )


def _of_slurm(cluster: SlurmCluster) -> Load:
    """The load of the partition that jobs go to, and one's own jobs; both as somebody asked a moment ago."""
    found = site(cluster.login)
    name = cluster.partition.partition(",")[0] or (found.default.name if found.default else "")
    partition = found.partitions.get(name)
    kinds = [kind for kind in partition.kinds if not kind.away] if partition else []
    command = queue_command(cluster.user)
    root = str(cluster.root_folder)
    answer = cluster.ask("slurm.query", root=root, name="queue", command=command, age=FRESH_SECONDS)
    groups = [job.group for job in parse_queue(answer["text"]).values()]
    return Load(
        cpus=sum(kind.cpus_used + kind.cpus_idle for kind in kinds),
        busy=sum(kind.cpus_used for kind in kinds),
        partition=name,
        gpus=sum(kind.gpus * kind.count for kind in kinds),
        gpus_taken=sum(kind.gpus_used for kind in kinds),
        running=groups.count("running"),
        waiting=groups.count("waiting"),
    )
