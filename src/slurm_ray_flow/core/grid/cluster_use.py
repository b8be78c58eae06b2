"""Who uses a cluster in campaigns, and how much of it. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

from slurm_ray_flow.core.artifacts import short_name
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ClusterShare, Drain, Pilot


@dataclasses.dataclass(frozen=True)
class Use:
    """What pilots there are, and what they have taken.

    Attributes:
        core_seconds: what all pilots held, those that have ended too, of the campaigns that are kept.
        running, queued: pilots that take bundles, and pilots that wait.
        items: the items that they have.
    """

    core_seconds: float = 0.0
    running: int = 0
    queued: int = 0
    items: int = 0

    def __add__(self, other: Use) -> Use:
        running, queued = self.running + other.running, self.queued + other.queued
        return Use(self.core_seconds + other.core_seconds, running, queued, self.items + other.items)


@dataclasses.dataclass(frozen=True)
class CampaignThere:
    """A campaign that goes on, on one of its clusters.

    Attributes:
        state: the campaign's.
        here: "open", "canary", "paused", "quarantined" or "drained".
        reason: why it is not open there.
        waiting: its items that no pilot has, on any cluster.
    """

    id: str
    name: str
    user: str
    state: str
    here: str
    reason: str
    use: Use
    waiting: int


@dataclasses.dataclass(frozen=True)
class ClusterUse:
    """What campaigns have of a cluster.

    Attributes:
        name: its name, without its kind.
        drain: by whom it is drained; None where it is not.
        campaigns: those that go on.
        users: what each user has and has had.
        shares: the virtual time of each user in core-seconds, by which fair shares are made; the least comes next.
    """

    name: str
    drain: Drain | None
    campaigns: list[CampaignThere]
    users: dict[str, Use]
    shares: dict[str, float]


def clusters_in_use(
    campaigns: Collection[Campaign],
    pilots: Mapping[Pilot, Use],
    drains: Collection[Drain],
    shares: Mapping[str, Mapping[str, float]],
    is_canary: Callable[[Campaign, str], bool],
) -> list[ClusterUse]:
    """What campaigns have of each cluster that they use or that is drained, by the names of the clusters.

    Args:
        campaigns: all campaigns.
        pilots: all pilots, each with what it has.
        drains: the clusters that are drained.
        shares: the virtual times of users on each cluster.
        is_canary: whether a campaign's cluster still has to show itself.
    """
    owners = {campaign.id: campaign.user for campaign in campaigns}
    users: dict[str, dict[str, Use]] = {}
    there: dict[tuple[str, str], Use] = {}
    for pilot, use in pilots.items():
        name, user = short_name(pilot.cluster), owners.get(pilot.campaign, "")
        own = users.setdefault(name, {})
        own[user] = own.get(user, Use()) + use
        there[name, pilot.campaign] = there.get((name, pilot.campaign), Use()) + use
    found: dict[str, list[CampaignThere]] = {name: [] for name in [*(drain.cluster for drain in drains), *users]}
    for campaign in campaigns:
        for share in campaign.clusters if not campaign.state.final else ():
            name = short_name(share.cluster)
            here = _state(campaign, share, is_canary)
            use = there.get((name, campaign.id), Use())
            row = CampaignThere(
                campaign.id, campaign.name, campaign.user, campaign.state.value, here, share.reason, use,
                campaign.unleased,
            )  # fmt: skip
            found.setdefault(name, []).append(row)
    drained = {drain.cluster: drain for drain in drains}
    virtual = {short_name(name): dict(times) for name, times in shares.items()}
    return [
        ClusterUse(name, drained.get(name), found[name], users.get(name, {}), virtual.get(name, {}))
        for name in sorted(found)
    ]


def _state(campaign: Campaign, share: ClusterShare, is_canary: Callable[[Campaign, str], bool]) -> str:
    is_open = share.state == "open" and campaign.state is CampaignState.ACTIVE
    return "canary" if is_open and is_canary(campaign, share.cluster) else share.state


def use_of(pilot: Pilot, cores: int, items: int, now: float) -> Use:
    """What a pilot has and has had.

    Args:
        cores: the cores that it holds.
        items: the items that it has.
        now: seconds since 1970.
    """
    until = now if pilot.ended_at is None else pilot.ended_at
    seconds = max(until - pilot.started_at, 0.0) if pilot.started_at is not None else 0.0
    lives = pilot.state != "ended"
    is_running = pilot.state == "running"
    return Use(cores * seconds, int(lives and is_running), int(lives and not is_running), items)
