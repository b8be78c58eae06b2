"""Leases of items, and their return. Each function is a part of its caller's transaction.

Where an item is can be told from its row: an item without a row was never leased, or is in its first bundle; a row that
is `LEASED` names the bundle that has it now. So each of a campaign's items is counted once: as not leased, in a live
bundle, or ended. An item that was cancelled alone may have a row before its number is reached: `waiting` is one less
for each such row, until a lease passes over it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, case, insert, select, update

from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import PAUSES, Bundle, CampaignState, ItemState, numbers_of, ranges_of
from slurm_ray_flow.grid.rows import chunks, locked, ranges_from, rows_of
from slurm_ray_flow.grid.tables import INTERRUPTED, LIVE, WAITING, bundles, campaigns, items

CANCELLED_ALONE = "a person cancelled this item"


def lease(connection: Connection, pilot_id: int, campaign_id: str, size: int, now: float) -> Bundle | None:
    """See `Store.lease`."""
    campaign = locked(connection, campaign_id)
    if campaign.state != CampaignState.ACTIVE.value:
        return None
    fresh, next_number, passed = _fresh(connection, campaign, size)
    again = _due(connection, campaign.key, size - len(fresh), now) if campaign.waiting + passed else []
    return _leased(connection, pilot_id, campaign, fresh, again, next_number, passed)


def lease_interrupted(connection: Connection, pilot_id: int, campaign_id: str, size: int) -> Bundle | None:
    """See `Store.lease_interrupted`."""
    campaign = locked(connection, campaign_id)
    if campaign.state != CampaignState.ACTIVE.value or not campaign.waiting:
        return None
    waiting = select(items.c.number).where(items.c.campaign == campaign.key, INTERRUPTED)
    again = list(connection.execute(waiting.order_by(items.c.number).limit(size)).scalars())
    return _leased(connection, pilot_id, campaign, [], again, campaign.next_number, 0)


def _leased(
    connection: Connection,
    pilot_id: int,
    campaign: Row[Any],
    fresh: list[int],
    again: list[int],
    next_number: int,
    passed: int,
) -> Bundle | None:
    """Lease items that never were, and some that wait again; None for no items. `_fresh` gives the last two."""
    ranges = ranges_of([*fresh, *again])
    if not ranges:
        return None
    count = len(fresh) + len(again)
    values = {"campaign": campaign.key, "pilot": pilot_id, "numbers": json.dumps(ranges), "size": count}
    made = connection.execute(insert(bundles).values(**values, ended=0, live=1))
    (bundle_id,) = made.inserted_primary_key or (0,)
    changed = {"next_number": next_number, "waiting": campaign.waiting + passed - len(again)}
    connection.execute(update(campaigns).where(campaigns.c.key == campaign.key).values(changed))
    for numbers in chunks(again):
        here = (items.c.campaign == campaign.key) & items.c.number.in_(numbers)
        connection.execute(update(items).where(here).values(state=ItemState.LEASED, bundle=bundle_id))
    return Bundle(bundle_id, pilot_id, campaign.id, ranges, count)


def _fresh(connection: Connection, campaign: Row[Any], size: int) -> tuple[list[int], int, int]:
    """Items that were never leased, the number behind the last of them, and how many with rows were passed over."""
    found: list[int] = []
    start, passed = campaign.next_number, 0
    while len(found) < size and start < campaign.total:
        end = min(start + size - len(found), campaign.total)
        here = (items.c.campaign == campaign.key) & (items.c.number >= start) & (items.c.number < end)
        known = set(connection.execute(select(items.c.number).where(here)).scalars())
        found += [number for number in range(start, end) if number not in known]
        passed += len(known)
        start = end
    return found, start, passed


def _due(connection: Connection, key: int, count: int, now: float) -> list[int]:
    """Waiting items that may be tried again with others, those with the fewest attempts first."""
    order = (items.c.attempts, items.c.not_before, items.c.number)
    # (A time beyond the longest pause is of a clock that was set back since.)
    is_time = (items.c.not_before <= now) | (items.c.not_before > now + PAUSES[-1])
    is_due = is_time & (items.c.interruptions == 0)
    waiting = select(items.c.number).where(items.c.campaign == key, WAITING, is_due)
    return list(connection.execute(waiting.order_by(*order).limit(max(count, 0))).scalars())


def give_back(connection: Connection, bundle_ids: Sequence[int]) -> int:
    """See `Store.give_back`."""
    total = 0
    for key in _campaigns_of(connection, bundle_ids):
        campaign = _lock(connection, key)
        found = select(bundles).where(bundles.c.campaign == key, bundles.c.id.in_(bundle_ids), LIVE)
        for bundle in connection.execute(found.order_by(bundles.c.id)).all():
            total += _return(connection, campaign, bundle)
    return total


def _campaigns_of(connection: Connection, bundle_ids: Sequence[int]) -> list[int]:
    """In an order that all transactions have, so that none waits for another in a circle."""
    query = select(bundles.c.campaign).where(bundles.c.id.in_(bundle_ids)).distinct().order_by(bundles.c.campaign)
    return list(connection.execute(query).scalars())


def _lock(connection: Connection, key: int) -> Row[Any]:
    return connection.execute(select(campaigns).where(campaigns.c.key == key).with_for_update()).one()


def _return(connection: Connection, campaign: Row[Any], bundle: Row[Any]) -> int:
    """Give back what a bundle still has; of a cancelled campaign that has ended by it."""
    key, is_cancelled = campaign.key, campaign.state == CampaignState.CANCELLED.value
    state = ItemState.CANCELLED if is_cancelled else ItemState.WAITING
    numbers = list(numbers_of(ranges_from(bundle.numbers)))
    columns = (items.c.number, items.c.state, items.c.bundle)
    rows = {number: (row_state, holder) for number, row_state, holder in rows_of(connection, key, numbers, columns)}
    fresh = [number for number in numbers if number not in rows]
    again = [number for number in numbers if rows.get(number) == (ItemState.LEASED, bundle.id)]
    for part in chunks(again):
        here = (items.c.campaign == key) & items.c.number.in_(part)
        connection.execute(update(items).where(here).values(state=state, not_before=0.0))
    if fresh and not is_cancelled:  # (what was cancelled without an attempt needs no row)
        blank = {"campaign": key, "bundle": bundle.id, "state": state, "attempts": 0, "crashes": 0, "not_before": 0.0}
        connection.execute(insert(items), [{**blank, "number": number} for number in fresh])
    column = campaigns.c.cancelled if is_cancelled else campaigns.c.waiting
    count = len(fresh) + len(again)
    connection.execute(update(campaigns).where(campaigns.c.key == key).values({column: column + count}))
    connection.execute(update(bundles).where(bundles.c.id == bundle.id).values(live=0))
    return count


def cancel(connection: Connection, campaign_id: str, reason: str) -> bool:
    """See `Store.cancel`."""
    campaign = locked(connection, campaign_id)
    if CampaignState(campaign.state).final:
        return False
    unleased = campaign.total - campaign.next_number + campaign.waiting
    cancelled = {"cancelled": campaign.cancelled + unleased, "next_number": campaign.total, "waiting": 0}
    changed = {**cancelled, "state": CampaignState.CANCELLED.value, "reason": reason}
    connection.execute(update(campaigns).where(campaigns.c.key == campaign.key).values(changed))
    waiting = update(items).where(items.c.campaign == campaign.key, WAITING)
    connection.execute(waiting.values(state=ItemState.CANCELLED))
    return True


def cancel_items(
    connection: Connection, campaign_id: str, places: Mapping[int, tuple[int, int]], outcomes_size: int
) -> int:
    """See `Store.cancel_items`."""
    campaign = locked(connection, campaign_id)
    if CampaignState(campaign.state).final:
        raise GridError(f"campaign {campaign_id[:8]} has ended: {campaign.state}", advice="nothing of it goes on")
    columns = (items.c.number, items.c.state, items.c.bundle)
    rows = {number: (state, bundle) for number, state, bundle in rows_of(connection, campaign.key, places, columns)}
    first = _first_bundles(connection, campaign.key, places.keys() - rows.keys())
    done: Counter[int] = Counter()
    count = waiting = 0
    for number, (place, length) in places.items():
        state, bundle = rows.get(number, (None, first.get(number, 0)))
        if state is not None and ItemState(state).final:
            continue
        in_hand = state == ItemState.LEASED or number in first
        done[bundle] += in_hand
        waiting += not in_hand
        count += 1
        values = {"state": ItemState.CANCELLED, "place": place, "length": length, "error": CANCELLED_ALONE}
        if state is None:
            blank = {"campaign": campaign.key, "number": number, "attempts": 0, "crashes": 0, "not_before": 0.0}
            connection.execute(insert(items).values(**blank, **values, bundle=bundle))
        else:
            here = (items.c.campaign == campaign.key) & (items.c.number == number)
            connection.execute(update(items).where(here).values(values))
    for bundle, ended in done.items():
        end_in_bundle(connection, bundle, ended)
    changed = {"cancelled": campaign.cancelled + count, "waiting": campaign.waiting - waiting}
    here = campaigns.c.key == campaign.key
    connection.execute(update(campaigns).where(here).values(**changed, outcomes_size=outcomes_size))
    return count


def _first_bundles(connection: Connection, key: int, numbers: Collection[int]) -> dict[int, int]:
    """The live bundles of items without rows."""
    found = {}
    for bundle, text in connection.execute(
        select(bundles.c.id, bundles.c.numbers).where(bundles.c.campaign == key, LIVE)
    ):
        ranges = ranges_from(text)
        found.update({n: bundle for n in numbers if any(first <= n < first + count for first, count in ranges)})
    return found


def end_in_bundle(connection: Connection, bundle_id: int, count: int) -> None:
    """Note that so many items of a bundle have ended; it has ended with the last one."""
    ended = bundles.c.ended + count
    values = {"ended": ended, "live": case((bundles.c.size > ended, bundles.c.live), else_=0)}
    connection.execute(update(bundles).where(bundles.c.id == bundle_id).values(values))


def finish_cancel(connection: Connection, campaign_id: str, now: float) -> None:
    """See `Store.finish_cancel`."""
    campaign = locked(connection, campaign_id)
    if campaign.state != CampaignState.CANCELLED.value or campaign.ended_at is not None:
        return
    live = (bundles.c.campaign == campaign.key) & LIVE
    counts = connection.execute(select(bundles.c.size, bundles.c.ended).where(live)).all()
    left = sum(size - ended for size, ended in counts)
    connection.execute(update(bundles).where(live).values(live=0))
    leased = update(items).where(items.c.campaign == campaign.key, items.c.state == ItemState.LEASED)
    connection.execute(leased.values(state=ItemState.CANCELLED))
    changed = {"cancelled": campaign.cancelled + left, "ended_at": now}
    connection.execute(update(campaigns).where(campaigns.c.key == campaign.key).values(changed))
