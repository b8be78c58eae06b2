"""Clusters as campaigns have them: who uses them, and which are drained.

On a drained cluster no campaign gets a pilot, and those that run end after the items that they have in hand.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from slurm_ray_flow.core.artifacts import short_name
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid.cluster_use import ClusterUse, clusters_in_use, use_of
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, Drain
from slurm_ray_flow.core.grid.troubles import Verdict
from slurm_ray_flow.grid import clock

if TYPE_CHECKING:
    from slurm_ray_flow.grid.engine import Engine

CODE = "drained"
"""The state of a campaign's cluster that is drained, and the code of the event that the campaign has meanwhile."""
LONGEST_REASON = 500


def drain(engine: Engine, cluster: str, user: str, reason: str) -> Drain:
    """Give campaigns no more pilots on a cluster. The engine's next look ends those that there are.

    Raises:
        OptionError: the reason is too long.
    """
    if len(reason) > LONGEST_REASON:
        raise OptionError(f"the reason has {len(reason)} letters, and {LONGEST_REASON} are kept", advice="shorten it")
    made = Drain(short_name(cluster), user, reason, clock.now())
    engine.store.drain(made)
    for campaign in engine.store.campaigns([CampaignState.ACTIVE, CampaignState.PAUSED]):
        note(engine, campaign, made.cluster)
    engine.wake()
    return made


def resume(engine: Engine, cluster: str) -> bool:
    """Have campaigns use a cluster again; says whether it was drained."""
    was_drained = engine.store.undrain(short_name(cluster))
    for event in engine.store.events():
        if event.code == CODE and short_name(event.cluster) == short_name(cluster):
            engine.store.close_event(event.id)
    engine.wake()
    return was_drained


def note(engine: Engine, campaign: Campaign, only: str = "") -> None:
    """Note as events of a campaign which of its clusters are drained.

    Args:
        only: the name of one of them; "" for all.
    """
    for share in campaign.clusters:
        if share.state == CODE and short_name(share.cluster) == (only or short_name(share.cluster)):
            engine.note(campaign.id, share.cluster, "warning", CODE, "", f"{share.cluster} is {share.reason}")


def end_pilots(engine: Engine) -> None:
    """End pilots on drained clusters: those that run after the items in hand, those that wait in a queue at once."""
    names = {drain.cluster for drain in engine.store.drains()}
    for pilot in list(engine.pilots.values()) if names else ():
        if short_name(pilot.cluster) not in names:
            continue
        if pilot.running:
            pilot.yielding = True
        else:
            engine.end_pilots([pilot])


def in_use(engine: Engine) -> list[ClusterUse]:
    """What campaigns have of each cluster that they use or that is drained."""
    store, governor, now = engine.store, engine.governor, clock.now()
    items: Counter[int] = Counter()
    for bundle in store.live_bundles():
        items[bundle.pilot] += bundle.size - bundle.ended
    pilots = {
        pilot: use_of(pilot, governor.cores(pilot.campaign, pilot.cluster, pilot.workers), items[pilot.id], now)
        for pilot in store.pilots()
    }
    shares = {
        cluster: {user: account.virtual for (user, campaign), account in accounts.items() if not campaign}
        for cluster, accounts in store.usage().items()
    }

    def is_canary(campaign: Campaign, cluster: str) -> bool:
        return governor.judged(campaign, cluster) is Verdict.CANARY

    return clusters_in_use(store.campaigns(), pilots, store.drains(), shares, is_canary)
