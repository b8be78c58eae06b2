"""What clients ask of the engine besides a campaign's state: more items, items anew, output, its removal."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from slurm_ray_flow.blocks import store as home_store
from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.errors import GridError, UnknownCampaignError
from slurm_ray_flow.core.grid.explain import explain
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ItemRow, ItemState
from slurm_ray_flow.grid import clock
from slurm_ray_flow.grid.arguments import BLOCK
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.engine import Engine
from slurm_ray_flow.grid.outcome_log import Frame
from slurm_ray_flow.grid.store import Store
from slurm_ray_flow.remote.shared.items import log_name

LONGEST_LOG = 1 << 20
"""The most bytes of an item's output that are read: its end."""


def add_items(engine: Engine, campaign: Campaign, first: int, count: int) -> None:
    """Add items whose arguments their client has written.

    Raises:
        GridError: the campaign has ended, or has another number of items than the client knows.
    """
    engine.check_owned(campaign)
    if first + count == campaign.total:
        return  # a client that had no answer asks again: others can't have added any while it held the arguments' lock
    if first != campaign.total or count < 1:
        what = f"campaign {campaign.id[:8]} has {campaign.total} items, and {count} more were to begin at {first}"
        raise GridError(what, advice="add them again")
    engine.store.add_items(campaign.id, count)
    engine.arguments(campaign).forget(first // BLOCK)
    engine.wake()


def resubmit(engine: Engine, campaign: Campaign, only: Collection[int] | None) -> int:
    """Have items without a value wait again; gives how many.

    The outcome log says so first: whoever reads it passes over what is before that. Nothing is recorded meanwhile.

    Raises:
        GridError: there is no such item, or the campaign is being cancelled.
    """
    engine.check_owned(campaign)
    store = engine.store
    with engine.writing(campaign) as outcome_log:
        numbers = store.failed_with_outcome(campaign.id, only)
        outcome_log.append([Frame(number, int(ItemState.WAITING), 0.0, b"") for number in numbers])
        outcome_log.sync()
        count = store.resubmit(campaign.id, only, outcome_log.size)
    if campaign.state.final and count:
        for share in campaign.clusters:
            store.set_cluster(campaign.id, share.cluster, state="open", reason="")
    engine.wake()
    return count


def cancel_items(engine: Engine, campaign: Campaign, only: Collection[int]) -> int:
    """End some items of a campaign; gives how many had not ended. One that a pilot has begun runs to its end there.

    Raises:
        GridError: there is no such item, or the campaign has ended.
    """
    store = engine.store
    for number in only:
        _item(store, campaign, number)
    with engine.writing(campaign) as outcome_log:
        numbers = sorted(set(only) - store.ended_among(campaign.id, only))
        frames = [Frame(number, int(ItemState.CANCELLED), 0.0, b"") for number in numbers]
        places = outcome_log.append(frames)
        outcome_log.sync()
        count = store.cancel_items(campaign.id, dict(zip(numbers, places, strict=True)), outcome_log.size)
    engine.wake()
    return count


def log_of_item(engine: Engine, campaign: Campaign, number: int) -> dict[str, Any]:
    """What an item printed in its last attempt that has ended.

    Raises:
        GridError: there is no such item, or what it printed is gone.
        SlurmRayFlowError: the cluster does not answer.
    """
    engine.check_owned(campaign)
    store = engine.store
    row = _item(store, campaign, number)
    ended = bool(row.attempts)
    answer = {"number": number, "state": row.state, "ended": ended, "text": "", "pilot": row.pilot, "cluster": ""}
    if row.log is None:
        return answer
    pilot_id, worker, start, length = row.log
    pilot = next(pilot for pilot in store.pilots(campaign.id) if pilot.id == pilot_id)
    record = home_store.find_record(pilot.run_id)
    path = record.paths.items / log_name(worker)
    cut = max(length - LONGEST_LOG, 0)
    position, end, pieces = start + cut, start + length, []
    cluster = cluster_of(record)
    while position < end and (piece := cluster.read(path, position)):
        pieces.append(piece[: end - position])
        position += len(pieces[-1])
    if position < end:
        what = f"what item {number} printed is gone from {pilot.cluster}"
        raise GridError(what, where=str(path), advice="files of runs are removed some days after their end")
    note = f"[the first {cut:,} of {length:,} bytes are left out]\n" if cut else ""
    text = note + b"".join(pieces).decode("utf-8", "replace")
    return {**answer, "text": text, "pilot": pilot_id, "cluster": pilot.cluster}


def fix(engine: Engine, campaign: Campaign, events: Collection[int] | None) -> int:
    """Close events of a campaign, and reopen to it the clusters that they name; gives how many were open.

    A campaign that was paused because all its clusters were closed goes on.

    Args:
        engine: the engine.
        campaign: the campaign.
        events: some of its events; None for all that are open.

    Raises:
        GridError: the campaign has no such event.
    """
    known = {event.id: event for event in engine.store.events(campaign.id, open_only=events is None)}
    if unknown := sorted(set(events or ()) - known.keys()):
        what = f"campaign {campaign.id[:8]} has no event {unknown[0]}"
        raise GridError(what, advice=f"`srf grid events {campaign.id[:8]}` lists them")
    chosen = [known[number] for number in (known if events is None else events)]
    count = sum(engine.store.close_event(event.id) for event in chosen)
    engine.governor.forget(campaign.id)
    closed = {share.cluster for share in campaign.clusters if share.closed}
    for cluster in closed & {event.cluster for event in chosen}:
        engine.store.set_cluster(campaign.id, cluster, state="open", reason="")
    if campaign.state is CampaignState.PAUSED and closed == {share.cluster for share in campaign.clusters}:
        engine.store.set_campaign_state(campaign.id, CampaignState.ACTIVE)
    engine.wake()
    return count


def campaign_of_event(store: Store, event_id: int) -> str:
    """The id of the campaign that has an event.

    Raises:
        UnknownCampaignError: there is no such event, or it is no campaign's.
    """
    for event in store.events(open_only=False):
        if event.id == event_id and event.campaign:
            return event.campaign
    raise UnknownCampaignError(f"no campaign has an event {event_id}", advice="`srf grid events ID` lists them")


def description(engine: Engine, campaign: Campaign) -> dict[str, Any]:
    """What a campaign runs, and what its pilots ask for on each cluster. Of variables it has the names alone.

    Raises:
        NotAllowedError: its files are at another home.
    """
    engine.check_owned(campaign)
    clusters = {}
    for share in campaign.clusters:
        launch = CampaignFolder(campaign.id).launch_of(share.cluster)
        options = {name: value for name, value in launch["options"].items() if value not in (None, "", 0, [])}
        if variables := options.pop("env_vars", ()):
            options["env_vars"] = sorted(name for name, _ in variables)
        most = share.options.get("max_pilots") or campaign.max_pilots
        clusters[share.cluster] = {"options": options, "pilot": launch["pilot"], "max_pilots": most}
    names = ("id", "name", "user", "function", "weight", "retries", "max_failures", "total", "options")
    return {**{name: getattr(campaign, name) for name in names}, "clusters": clusters}


def explanation(store: Store, campaign: Campaign, number: int) -> str:
    """Why an item waits, or where it is.

    Raises:
        GridError: there is no such item.
    """
    item = _item(store, campaign, number)
    return explain(campaign, item, store.pilots(campaign.id), clock.now(), _clock)


def _item(store: Store, campaign: Campaign, number: int) -> ItemRow:
    found = store.items(campaign.id, number, 1) if number >= 0 else []
    if not found:
        raise GridError(f"campaign {campaign.id[:8]} has no item {number}", advice=f"it has {campaign.total} of them")
    return found[0]


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def purge(engine: Engine, campaign: Campaign) -> None:
    """Remove a campaign that has ended, with its folder.

    Raises:
        GridError: it goes on, or its pilots have not ended.
    """
    engine.check_owned(campaign)
    if not campaign.state.final:
        what = f"campaign {campaign.id[:8]} is {campaign.state.value}, and can't be removed"
        raise GridError(what, advice=f"cancel it first: `srf grid cancel {campaign.id[:8]}`")
    if pilots := engine.pilots_of(campaign.id):
        what = f"{len(pilots)} pilots of campaign {campaign.id[:8]} have not ended yet"
        raise GridError(what, advice="remove it in a minute")
    engine.close_files(campaign.id)
    engine.store.delete_campaign(campaign.id)
    CampaignFolder(campaign.id).remove()
