"""The items of a campaign as they are shown: those with rows, and those of which only bundles tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, select

from slurm_ray_flow.core.grid.model import CampaignState, ItemRow, ItemState
from slurm_ray_flow.grid.rows import ranges_from, unknown
from slurm_ray_flow.grid.tables import LIVE, bundles, campaigns, items


def shown(connection: Connection, campaign_id: str, first: int, count: int) -> list[ItemRow]:
    """See `Store.items`."""
    columns = (campaigns.c.key, campaigns.c.total, campaigns.c.state)
    campaign = connection.execute(select(*columns).where(campaigns.c.id == campaign_id)).first()
    if campaign is None:
        raise unknown(campaign_id)
    first, end = max(first, 0), min(first + count, campaign.total)
    rows = _rows(connection, campaign.key, first, end)
    missing = [number for number in range(first, end) if number not in rows]
    pilots = dict(_in_first_bundles(connection, campaign.key, missing[0], missing[-1] + 1)) if missing else {}
    is_cancelled = campaign.state == CampaignState.CANCELLED.value
    for number in missing:
        state = "leased" if number in pilots else "cancelled" if is_cancelled else "waiting"
        rows[number] = ItemRow(number, state, pilot=pilots.get(number))
    return [rows[number] for number in range(first, end)]


def _rows(connection: Connection, key: int, first: int, end: int) -> dict[int, ItemRow]:
    query = select(items, bundles.c.pilot).outerjoin(bundles, bundles.c.id == items.c.bundle)
    here = (items.c.campaign == key) & (items.c.number >= first) & (items.c.number < end)
    return {row.number: _item_row(row) for row in connection.execute(query.where(here))}


def _item_row(row: Row[Any]) -> ItemRow:
    return ItemRow(
        row.number,
        ItemState(row.state).name.lower(),
        row.seconds,
        row.place,
        row.length,
        row.attempts,
        row.crashes,
        row.not_before,
        row.pilot,
        row.error or "",
        None if row.log_pilot is None else (row.log_pilot, row.log_worker, row.log_start, row.log_length),
    )


def _in_first_bundles(connection: Connection, key: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The items of these numbers that live bundles have, with the bundles' pilots."""
    query = select(bundles.c.pilot, bundles.c.numbers).where(bundles.c.campaign == key, LIVE)
    for pilot, text in connection.execute(query):
        for start, count in ranges_from(text):
            for number in range(max(start, first), min(start + count, end)):
                yield number, pilot
