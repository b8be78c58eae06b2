"""The mirror of a server's lock in Prefect's limit, which shows holders from outside of this Prefect, too.

What others hold is taken from the limit by leases like everybody's, never written into it as a number: so no slot of a
launch of ours can be freed by it, whatever happens at the same time. Where the mirror's own leases are noted is a
variable of the Prefect server, so that all who use that server share them; they end soon when nobody mirrors any more.
"""

from __future__ import annotations

from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.concurrency_limit import ConcurrencyLimit
from slurm_ray_flow.blocks.server import variables
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.lock import LockQueue, limit_name, taken_by_others, to_hold

HELD_SECONDS = 150.0
"""The lease in seconds of slots that the mirror holds for others; it is renewed each minute or more often."""


def mirror(api: Api, cluster: str, slots: int, queue: LockQueue | None) -> ConcurrencyLimit:
    """Hold as many slots of a server's limit as others hold on the server.

    Args:
        api: the Prefect server.
        cluster: the server's name.
        slots: how many it has.
        queue: its holders; None where it did not say, and the limit stays as it is.

    Raises:
        ServerError: Prefect does not answer.
    """
    limit = concurrency_limit.ensure(api, limit_name(cluster), slots)
    if queue is not None:
        _hold(api, limit, queue)
    return limit


def _hold(api: Api, limit: ConcurrencyLimit, queue: LockQueue) -> None:
    others = taken_by_others(queue, limit.key, limit.slots)
    if not others and not limit.active:
        return
    known = variables.recall(api, "mirror", limit.key)
    noted = [str(lease) for lease in known] if isinstance(known, list) else []
    leases = [lease for lease in noted if concurrency_limit.renew(api, lease, HELD_SECONDS)]
    wanted = to_hold(others, active=limit.active, held=len(leases), slots=limit.slots)
    for lease in leases[wanted:]:
        concurrency_limit.give_back(api, lease)
    leases = leases[:wanted]
    while len(leases) < wanted and (more := concurrency_limit.take(api, limit.name, seconds=HELD_SECONDS)):
        leases.append(more)
    if leases != noted:
        variables.remember(api, "mirror", limit.key, leases)
