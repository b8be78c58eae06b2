"""Items that have ended without a value wait again. Each function is a part of its caller's transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import CampaignState, ItemState
from slurm_ray_flow.grid.rows import chunks, locked, rows_of
from slurm_ray_flow.grid.tables import campaigns, items

WITHOUT_VALUE = (ItemState.FAILED, ItemState.CRASHED, ItemState.CANCELLED)
_BLANK = {"attempts": 0, "crashes": 0, "interruptions": 0, "not_before": 0.0, "bundle": 0}
_AS_NEW: dict[str, Any] = {
    "state": ItemState.WAITING, "attempts": 0, "crashes": 0, "interruptions": 0, "not_before": 0.0, "seconds": None,
    "place": None, "length": None, "error": None, "log_pilot": None, "log_worker": None, "log_start": None,
    "log_length": None,
}  # fmt: skip


def with_outcome(connection: Connection, campaign_id: str, only: Collection[int] | None) -> list[int]:
    """The items that failed and have an outcome in the log."""
    campaign = locked(connection, campaign_id)
    return [number for number, _, place in _ended(connection, campaign.key, only) if place is not None]


def resubmit(connection: Connection, campaign_id: str, only: Collection[int] | None, outcomes_size: int) -> int:
    """See `Store.resubmit`."""
    campaign = locked(connection, campaign_id)
    is_cancelled = campaign.state == CampaignState.CANCELLED.value
    if is_cancelled and campaign.succeeded + campaign.failed + campaign.cancelled < campaign.total:
        what = f"campaign {campaign_id[:8]} is being cancelled: its pilots have not ended yet"
        raise GridError(what, advice="resubmit its items when they have, in a minute")
    if only and not 0 <= min(only) <= max(only) < campaign.total:
        raise GridError(f"campaign {campaign_id[:8]} has the items 0 to {campaign.total - 1}, and no others")
    changed = _ended(connection, campaign.key, only)
    for part in chunks(number for number, _, _ in changed):
        here = (items.c.campaign == campaign.key) & items.c.number.in_(part)
        connection.execute(update(items).where(here).values(_AS_NEW))
        connection.execute(delete(items).where(here, items.c.number >= campaign.next_number))  # never leased: no row
    states = Counter(state for _, state, _ in changed)
    moved = {"next_number": campaign.next_number, "waiting": campaign.waiting + len(changed)}
    fresh = 0
    if is_cancelled:
        fresh = _free_without_rows(connection, campaign, only, moved)
    count = len(changed) + fresh
    if not count:
        return 0
    moved["cancelled"] = campaign.cancelled - states[ItemState.CANCELLED] - fresh
    moved["failed"] = campaign.failed - states[ItemState.FAILED] - states[ItemState.CRASHED]
    values: dict[str, Any] = {**moved, "resubmitted": campaign.resubmitted + count, "outcomes_size": outcomes_size}
    if CampaignState(campaign.state).final:
        values.update(state=CampaignState.ACTIVE.value, reason="", ended_at=None)
    connection.execute(update(campaigns).where(campaigns.c.key == campaign.key).values(values))
    return count


def _ended(connection: Connection, key: int, only: Collection[int] | None) -> list[tuple[int, int, int | None]]:
    """Number, state and place of those items with rows that have ended without a value."""
    columns = (items.c.number, items.c.state, items.c.place)
    if only is None:
        query = select(*columns).where(items.c.campaign == key, items.c.state.in_(WITHOUT_VALUE))
        rows: Iterable[Row[Any]] = connection.execute(query.order_by(items.c.number))
    else:
        rows = rows_of(connection, key, set(only), columns)
    return [(number, state, place) for number, state, place in rows if state in WITHOUT_VALUE]


def _free_without_rows(
    connection: Connection, campaign: Row[Any], only: Collection[int] | None, moved: dict[str, int]
) -> int:
    """Have items wait that were cancelled before they had a row; gives how many, and changes the counts.

    Those behind the last row are as if they had never been leased. The campaign goes on, so that each other one needs
    a row: without one it would count as leased.
    """
    last = connection.execute(select(func.max(items.c.number)).where(items.c.campaign == campaign.key)).scalar()
    end = campaign.total if only is not None else 0 if last is None else last + 1
    query = select(items.c.number).where(items.c.campaign == campaign.key, items.c.number < end)
    known = set(connection.execute(query).scalars())
    wanted = None if only is None else set(only)
    count = 0
    for part in chunks(number for number in range(end) if number not in known):
        rows = []
        for number in part:
            waits = wanted is None or number in wanted
            state = ItemState.WAITING if waits else ItemState.CANCELLED
            rows.append({**_BLANK, "campaign": campaign.key, "number": number, "state": state})
            count += waits
        connection.execute(insert(items), rows)
    moved["waiting"] += count
    moved["next_number"] = end
    return count + int(campaign.total) - end
