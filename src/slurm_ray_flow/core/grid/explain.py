"""Why an item waits, or where it is, in one sentence. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ClusterShare, ItemRow, Pilot
from slurm_ray_flow.core.quantities import format_duration

Clock = Callable[[float], str]


def explain(campaign: Campaign, item: ItemRow, pilots: Sequence[Pilot], now: float, clock: Clock) -> str:
    """What is with an item.

    Args:
        campaign: its campaign.
        item: the item as it is shown.
        pilots: all pilots of the campaign.
        now: seconds since 1970.
        clock: a time of day for people.
    """
    holder = next((pilot for pilot in pilots if pilot.id == item.pilot), None)
    start = f"Item {item.number}"
    if item.state == "waiting":
        return f"{start} waits: {_why_waiting(campaign, item, pilots, now, clock)}."
    if item.state == "leased":
        return f"{start} {_where(campaign, item, holder, clock)}."
    if item.state == "cancelled":
        tried = f" after {_attempts(item.attempts)}" if item.attempts else ", and was never tried"
        return f"{start} was cancelled{tried}."
    took = f" in {_seconds(item.seconds)}" if item.seconds is not None else ""
    place = f" at pilot {holder.id} on {holder.cluster}" if holder else ""
    if item.state == "succeeded":
        return f"{start} has its value, after {_attempts(item.attempts)}, the last{took}{place}."
    ended = "was given up" if item.state == "crashed" else "has failed"
    return (
        f"{start} {ended} after {_attempts(item.attempts)}, the last{took}{place}: {item.error or 'it said nothing'}."
    )


def _why_waiting(campaign: Campaign, item: ItemRow, pilots: Sequence[Pilot], now: float, clock: Clock) -> str:
    if campaign.state is CampaignState.PAUSED:
        return f"the campaign is paused ({campaign.reason or 'no reason was given'})"
    if item.not_before > now:
        failed = f": {item.error}" if item.error else ""
        return f"it will be tried again at {clock(item.not_before)}, after attempt {item.attempts} failed{failed}"
    before = f"{item.error}; " * bool(item.error and not item.attempts) + _before(campaign, item)
    live = [pilot for pilot in pilots if pilot.state != "ended"]
    return f"{before}; {'; '.join(_on(share, live, clock) for share in campaign.clusters) or 'it has no cluster'}"


def _before(campaign: Campaign, item: ItemRow) -> str:
    """How many items go before it: those that were never begun go first, in order."""
    if item.number >= campaign.next_number:
        count, most = item.number - campaign.next_number, ""
    else:
        count = campaign.total - campaign.next_number + max(campaign.waiting - 1, 0)
        most = "at most " if campaign.waiting > 1 else ""
    return f"{most}{count} items go before it" if count else "it is the next one"


def _on(share: ClusterShare, live: Sequence[Pilot], clock: Clock) -> str:
    """What there is of pilots on a cluster."""
    if share.state == "drained":
        return f"{share.cluster} is {share.reason}"
    if share.state != "open":
        return f"{share.cluster} is closed to the campaign ({share.reason or share.state})"
    here = [pilot for pilot in live if pilot.cluster == share.cluster]
    if running := [pilot for pilot in here if pilot.state == "running"]:
        workers = sum(pilot.workers for pilot in running)
        return f"on {share.cluster} {_count(len(running), 'pilot')} with {_count(workers, 'worker')} run"
    if here:
        since = clock(min(pilot.created for pilot in here))
        return f"no pilot runs on {share.cluster}, where {_count(len(here), 'pilot')} wait since {since}"
    return f"{share.cluster} has no pilot yet"


def _where(campaign: Campaign, item: ItemRow, holder: Pilot | None, clock: Clock) -> str:
    if holder is None:
        return "is in a bundle of no pilot that is known"
    tried = f" for attempt {item.attempts + 1}" if item.attempts else ""
    if holder.state == "running" and holder.started_at:
        paused = ", though the campaign is paused" if campaign.state is CampaignState.PAUSED else ""
        return (
            f"is at pilot {holder.id}{tried}, which runs on {holder.cluster} since {clock(holder.started_at)}{paused}"
        )
    return f"is at pilot {holder.id}{tried}, which waits for {holder.cluster} since {clock(holder.created)}"


def _attempts(count: int) -> str:
    return _count(count, "attempt")


def _count(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _seconds(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 1 else f"{seconds:.3f} s"
