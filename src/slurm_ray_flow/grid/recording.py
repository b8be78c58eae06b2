"""The transaction that records what a pilot said of its items: each outcome once, with the offset it was read to."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from slurm_ray_flow.core.grid.model import CampaignState, ItemOutcome, ItemRetry, ItemState, Ranges, Recorded
from slurm_ray_flow.grid.leases import end_in_bundle
from slurm_ray_flow.grid.rows import error_of, insert_rows, locked, ranges_from, rows_of
from slurm_ray_flow.grid.tables import bundles, campaigns, items, pilots

_FINAL = frozenset(state for state in ItemState if state.final)


@dataclasses.dataclass
class _Item:
    """What an item's row says, or will say."""

    state: int
    attempts: int
    crashes: int
    interruptions: int
    bundle: int


@dataclasses.dataclass
class _Held:
    """A bundle that a result names."""

    ranges: Ranges
    live: bool

    def has(self, number: int) -> bool:
        position = bisect.bisect_right(self.ranges, (number, 1 << 62)) - 1
        return position >= 0 and number < self.ranges[position][0] + self.ranges[position][1]


class Recording:
    """What outcomes and retries change. Nothing is written before `write`.

    Args:
        connection: a transaction that writes.
        campaign: the campaign's locked row.
        pilot_id: who has said it.
        results: all outcomes and retries that will be given to it.
    """

    def __init__(
        self, connection: Connection, campaign: Row[Any], pilot_id: int, results: Sequence[ItemOutcome | ItemRetry]
    ) -> None:
        self._connection, self._campaign, self._pilot = connection, campaign, pilot_id
        self._rows = _known_items(connection, campaign.key, {result.number for result in results})
        self._bundles = _named_bundles(connection, campaign.key, {result.bundle for result in results})
        self._fresh: list[dict[str, Any]] = []
        self._changed: list[dict[str, Any]] = []
        self._done: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()

    def end(self, outcome: ItemOutcome) -> None:
        """Record the end of an item, unless it has ended before."""
        row, known = self._rows.get(outcome.number), self._is_known(outcome)
        if not known or (row is not None and row.state in _FINAL):
            self.counts["duplicates"] += 1
            return
        self._settle(outcome, row)
        self.counts["new"] += 1
        self.counts["succeeded" if outcome.state is ItemState.SUCCEEDED else "failed"] += 1
        crashed = outcome.state is ItemState.CRASHED
        place = {"place": outcome.offset, "length": outcome.length, "not_before": 0.0}
        self._write_row(outcome, row, outcome.state, place, crashed=crashed)

    def retry(self, retry: ItemRetry) -> None:
        """Have an item wait again, unless it has ended, or waits or is leased again already."""
        row, known = self._rows.get(retry.number), self._is_known(retry)
        in_hand = row is None or (row.state == ItemState.LEASED and row.bundle == retry.bundle)
        if not known or not in_hand:
            self.counts["duplicates"] += 1
            return
        self._settle(retry, row)
        self.counts["attempts_failed"] += not retry.interrupted
        state = ItemState.WAITING
        if self._campaign.state == CampaignState.CANCELLED.value:
            state = ItemState.CANCELLED
        self.counts["waiting" if state is ItemState.WAITING else "cancelled"] += 1
        place = {"place": None, "length": None, "not_before": retry.not_before}
        self._write_row(retry, row, state, place, crashed=retry.crashed, interrupted=retry.interrupted)

    def _is_known(self, result: ItemOutcome | ItemRetry) -> bool:
        """Whether the item is in the bundle. One that has no row is in its first bundle, as long as that is live."""
        bundle = self._bundles.get(result.bundle)
        return bundle is not None and bundle.has(result.number) and (bundle.live or result.number in self._rows)

    def _settle(self, result: ItemOutcome | ItemRetry, row: _Item | None) -> None:
        """Take an item from where it was: its bundle, or those that wait."""
        if row is None:
            self._done[result.bundle] += 1
        elif row.state == ItemState.LEASED:
            self._done[row.bundle] += 1
        else:
            self.counts["waiting"] -= 1

    def _write_row(
        self,
        result: ItemOutcome | ItemRetry,
        row: _Item | None,
        state: ItemState,
        place: dict[str, Any],
        *,
        crashed: bool,
        interrupted: bool = False,
    ) -> None:
        before = row or _Item(state, 0, 0, 0, 0)
        attempts, crashes = before.attempts + (not interrupted), before.crashes + crashed
        interruptions = before.interruptions + interrupted
        values = {
            "campaign": self._campaign.key,
            "number": result.number,
            "state": int(state),
            "seconds": result.seconds,
            "attempts": attempts,
            "crashes": crashes,
            "interruptions": interruptions,
            "bundle": result.bundle,
            "error": error_of(result.error),
            "log_pilot": self._pilot if result.log else None,
            **dict(zip(_LOG, result.log or (None, None, None), strict=True)),
            **place,
        }
        (self._fresh if row is None else self._changed).append(values)
        self._rows[result.number] = _Item(state, attempts, crashes, interruptions, result.bundle)

    def write(self) -> None:
        """Write items, bundles and the campaign's counts."""
        if self._fresh:
            insert_rows(self._connection, items, self._fresh)
        if self._changed:
            self._connection.execute(_CHANGE, [_for_change(values) for values in self._changed])
        for bundle_id, count in sorted(self._done.items()):
            end_in_bundle(self._connection, bundle_id, count)


_LOG = ("log_worker", "log_start", "log_length")
_KEYS = (items.c.campaign, items.c.number)
_CHANGE = (
    update(items)
    .where(*(column == bindparam(f"its_{column.name}") for column in _KEYS))
    .values({column.name: bindparam(column.name) for column in items.c if column not in set(_KEYS)})
)


def _for_change(values: dict[str, Any]) -> dict[str, Any]:
    """An item's columns as `_CHANGE` names them; a column that is to be changed can't be named in its condition."""
    renamed = {f"its_{column.name}": values[column.name] for column in _KEYS}
    return {**{name: value for name, value in values.items() if f"its_{name}" not in renamed}, **renamed}


def record(
    connection: Connection,
    pilot_id: int,
    campaign_id: str,
    results_offset: int,
    outcomes: Sequence[ItemOutcome],
    retries: Sequence[ItemRetry],
    outcomes_size: int,
) -> Recorded:
    """See `Store.record`."""
    campaign = locked(connection, campaign_id)
    recording = Recording(connection, campaign, pilot_id, [*outcomes, *retries])
    for outcome in outcomes:
        recording.end(outcome)
    for retry in retries:
        recording.retry(retry)
    recording.write()
    counts = recording.counts
    moved = {name: getattr(campaign, name) + counts[name] for name in ("succeeded", "failed", "cancelled", "waiting")}
    values = {**moved, "outcomes_size": outcomes_size}
    connection.execute(update(campaigns).where(campaigns.c.key == campaign.key).values(values))
    pilot = {
        "results_offset": results_offset,
        "succeeded": pilots.c.succeeded + counts["succeeded"],
        "failed": pilots.c.failed + counts["failed"] + counts["attempts_failed"],
    }
    connection.execute(update(pilots).where(pilots.c.id == pilot_id).values(pilot))
    ended = moved["succeeded"] + moved["failed"] + moved["cancelled"]
    return Recorded(counts["new"], counts["duplicates"], ended == campaign.total)


def _known_items(connection: Connection, key: int, numbers: Collection[int]) -> dict[int, _Item]:
    columns = (items.c.number, items.c.state, items.c.attempts, items.c.crashes, items.c.interruptions, items.c.bundle)
    return {number: _Item(*row) for number, *row in rows_of(connection, key, numbers, columns)}


def _named_bundles(connection: Connection, key: int, ids: Collection[int]) -> dict[int, _Held]:
    columns = (bundles.c.id, bundles.c.numbers, bundles.c.live)
    found = connection.execute(select(*columns).where(bundles.c.campaign == key, bundles.c.id.in_(ids)))
    return {row.id: _Held(ranges_from(row.numbers), bool(row.live)) for row in found}
