"""Who has a shared server, shown in Prefect: its limit, an artifact, and an event where it does not answer."""

from __future__ import annotations

import dataclasses
import time

from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from slurm_ray_flow.blocks import limits
from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.mirror import ask, show_queue
from slurm_ray_flow.core.artifact import artifact_key, short_name
from slurm_ray_flow.core.errors import ServerError, SlurmRayFlowError
from slurm_ray_flow.core.mirror import Queue, limit_name, rows

NO_ANSWER = "slurm-ray-flow.cluster.no-answer"
"""The event that an automation may wait for."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a check-up found.

    Attributes:
        cluster: its name.
        queue: who has it and who waits; None where it gave no answer.
        why: it gave no answer.
    """

    cluster: str
    queue: Queue | None
    why: str = ""


def check_up(name: str) -> Seen | None:
    """Make Prefect's limit show who has the server, and write it down as an artifact.

    Returns:
        What it found; None for a cluster without a lock.

    Raises:
        ServerError: Prefect has no API that others can reach.
    """
    try:
        seen = _see(name)
    except ServerError:
        raise
    except SlurmRayFlowError as error:
        seen = Seen(short_name(name), None, error.what)
    if seen is not None and seen.queue is None:
        who = seen.cluster
        resource = {"prefect.resource.id": f"slurm-ray-flow.cluster.{who}", "prefect.resource.name": who}
        emit_event(NO_ANSWER, resource=resource, payload={"why": seen.why})
    elif seen is not None and seen.queue is not None:
        _write_down(seen.cluster, seen.queue)
    return seen


def _see(name: str) -> Seen | None:
    cluster = find_cluster(name)
    if cluster.lock is None:
        return None
    api = limits.api_here()
    if api is None:
        raise ServerError(
            "No Prefect API is configured for the check-up.", advice="Set PREFECT_API_URL, or use srf up."
        )
    limit = limits.ensure(api, limit_name(cluster.label), cluster.lock.slots)
    queue = ask(cluster, cluster.lock)
    show_queue(api, limit, queue)
    return Seen(short_name(name), queue)


def _write_down(name: str, queue: Queue) -> None:
    now = time.time()
    who = ", ".join(holder.user for holder in queue.holders)
    text = f"{name}: " + (f"held by {who}, {len(queue.waiting)} wait" if who else "free")
    create_table_artifact(table=rows(queue, now), key=artifact_key("queue", name), description=text)
