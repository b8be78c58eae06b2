"""The mirror of a server's lock in Prefect's limit, which shows holders from outside of this Prefect, too.

What others hold is taken from the limit by leases like everybody's, never written into it as a number: so no slot of a
launch of ours can be freed by it, whatever happens at the same time. Where the mirror's own leases are noted is a
variable of the Prefect server, so that all who use that server share them; they end soon when nobody mirrors any more.
"""

from __future__ import annotations

from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.concurrency_limit import ConcurrencyLimit
from slurm_ray_flow.blocks.server.api import Api, status_of
from slurm_ray_flow.core.errors import ServerError, SlurmRayFlowError
from slurm_ray_flow.core.lock import Lock, LockQueue, limit_name, taken_by_others, to_hold

HELD_SECONDS = 150.0
"""The lease in seconds of slots that the mirror holds for others; it is renewed each minute or more often."""


def mirror(cluster: Cluster, lock: Lock, api: Api) -> tuple[ConcurrencyLimit, LockQueue | None]:
    """Ask the server for its holders, and take their slots of the limit.

    Returns:
        The limit; and what the server said, None where it did not answer.

    Raises:
        ServerError: Prefect does not answer.
    """
    limit = concurrency_limit.ensure(api, limit_name(cluster.label), lock.slots)
    try:
        queue = ask(cluster, lock)
    except SlurmRayFlowError:
        return limit, None
    show_queue(api, limit, queue)
    return limit, queue


def ask(cluster: Cluster, lock: Lock) -> LockQueue:
    """The holders and the queue of a server.

    Raises:
        SlurmRayFlowError: it does not answer, or what lies in the lock's place is none.
    """
    return LockQueue.from_json(cluster.ask("queue.state", path=lock.path, slots=lock.slots))


def show_queue(api: Api, limit: ConcurrencyLimit, queue: LockQueue) -> None:
    """Make a limit show the holders of its server."""
    others = taken_by_others(queue, limit.key, limit.slots)
    if others or limit.active:
        show(api, limit, others)


def show(api: Api, limit: ConcurrencyLimit, others: int) -> None:
    """Hold as many slots of a limit as others hold on the server."""
    noted = _noted(api, limit)
    held = [lease for lease in noted if concurrency_limit.renew(api, lease, HELD_SECONDS)]
    wanted = to_hold(others, active=limit.active, held=len(held), slots=limit.slots)
    for lease in held[wanted:]:
        concurrency_limit.give_back(api, lease)
    held = held[:wanted]
    while len(held) < wanted and (more := concurrency_limit.take(api, limit.name, seconds=HELD_SECONDS)):
        held.append(more)
    if held != noted:
        _note(api, limit, held)


def _noted(api: Api, limit: ConcurrencyLimit) -> list[str]:
    try:
        value = api.get(f"/variables/name/{_variable(limit)}")["value"]
    except ServerError as error:
        if status_of(error) == concurrency_limit.MISSING:
            return []
        raise
    return [str(lease) for lease in value] if isinstance(value, list) else []


def _note(api: Api, limit: ConcurrencyLimit, leases: list[str]) -> None:
    name = _variable(limit)
    try:
        api.patch(f"/variables/name/{name}", {"value": leases})
    except ServerError as error:
        if status_of(error) != concurrency_limit.MISSING:
            raise
        api.post("/variables/", {"name": name, "value": leases})


def _variable(limit: ConcurrencyLimit) -> str:
    return f"srf-mirror-{limit.key}"
