"""The mirror of a server's lock in Prefect's limit, which shows holders from outside of this Prefect, too.

The mirror takes slots for other holders by leases, as launches do, and never sets the number of taken slots: so it
can't free the slot of a launch. A variable of the Prefect server notes the mirror's leases, so that all users of that
server share them; they end soon after the last renewal.
"""

from __future__ import annotations

from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.concurrency_limit import ConcurrencyLimit
from slurm_ray_flow.blocks.server import variables
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.lock import LockQueue, limit_name, slots_to_hold, taken_by_others

HELD_SECONDS = 150.0
"""Seconds of a lease of the mirror, which is renewed each minute or more often."""


def mirror(api: Api, cluster: str, slots: int, queue: LockQueue | None) -> ConcurrencyLimit:
    """Hold as many slots of a server's limit as others hold on the server.

    Args:
        api: the Prefect server.
        cluster: the server's name.
        slots: the number of the server's slots.
        queue: the server's queue; None for no answer, which leaves the limit as it is.

    Raises:
        ServerError: Prefect does not answer.
    """
    limit = concurrency_limit.ensure(api, limit_name(cluster), slots)
    if queue is not None:
        _hold(api, limit, queue)
    return limit


def _hold(api: Api, limit: ConcurrencyLimit, queue: LockQueue) -> None:
    taken = taken_by_others(queue, limit.key, limit.slots)
    if not taken and not limit.active:
        return
    stored = variables.recall(api, "mirror", limit.key)
    noted_leases = [str(lease) for lease in stored] if isinstance(stored, list) else []
    leases = [lease for lease in noted_leases if concurrency_limit.renew(api, lease, HELD_SECONDS)]
    target = slots_to_hold(taken, active=limit.active, held=len(leases), slots=limit.slots)
    for lease in leases[target:]:
        concurrency_limit.give_back(api, lease)
    leases = leases[:target]
    while len(leases) < target and (lease_taken := concurrency_limit.take(api, limit.name, seconds=HELD_SECONDS)):
        leases.append(lease_taken)
    if leases != noted_leases:
        variables.remember(api, "mirror", limit.key, leases)
