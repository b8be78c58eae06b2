"""The store of the grid: campaigns, leases, outcomes, pilots and events. Each method is one transaction.

The engine alone writes. All methods raise `GridError` where the database can't be used, and `UnknownCampaignError`
where they are given the id of no campaign.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, false, func, insert, or_, select, update

from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import (
    Bundle,
    Campaign,
    CampaignState,
    GridEvent,
    ItemOutcome,
    ItemRetry,
    ItemRow,
    ItemState,
    Pilot,
    Recorded,
)
from slurm_ray_flow.grid import item_table, leases, recording, resubmission
from slurm_ray_flow.grid.database import Database, default_url
from slurm_ray_flow.grid.rows import (
    bundle_columns,
    bundle_of,
    campaign_values,
    columns_of,
    event_columns,
    key_of,
    locked,
    pilot_columns,
    read_campaigns,
    read_events,
    read_pilots,
    rows_of,
    share_values,
    text_of,
    unknown,
)
from slurm_ray_flow.grid.sharing import ClusterTables
from slurm_ray_flow.grid.tables import (
    INTERRUPTED,
    LIVE,
    OPEN,
    WAITING,
    bundles,
    campaigns,
    events,
    items,
    pilots,
    shares,
    usage,
)
from slurm_ray_flow.grid.users import Users

__all__ = ["Store", "default_url"]

FINAL = [state.value for state in CampaignState if state.final]


class Store(ClusterTables):
    """The tables of the grid, for all threads of one process.

    Args:
        url: the database, as `default_url` gives it.

    Raises:
        GridError: there can be no such database. Nothing is opened yet.
    """

    def __init__(self, url: str) -> None:
        super().__init__(Database(url))
        self.users = Users(self._database)

    def migrate(self) -> None:
        """Make the tables, or bring them to this version; needed once in each process, before all else."""
        self._database.migrate()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    # ---- campaigns

    def add_campaign(self, campaign: Campaign) -> None:
        """Keep a new campaign with its clusters."""
        with self._database.writing() as connection:
            made = connection.execute(insert(campaigns).values(campaign_values(campaign)))
            (key,) = made.inserted_primary_key or (0,)
            if campaign.clusters:
                connection.execute(insert(shares), [share_values(key, share) for share in campaign.clusters])

    def show_map(self, row: Campaign) -> None:
        """Keep the row of a map as it is now, in the place of an earlier one."""
        changes = {name: getattr(row, name) for name in _MAP_CHANGES}
        with self._database.writing() as connection:
            state = row.state.value
            if _change(connection, campaigns.c.id == row.id, **changes, state=state):
                return
            (key,) = connection.execute(insert(campaigns).values(campaign_values(row))).inserted_primary_key or (0,)
            connection.execute(insert(shares), [share_values(key, share) for share in row.clusters])

    def add_items(self, campaign_id: str, count: int) -> int:
        """Add items to a campaign; gives the number of the first one.

        Raises:
            GridError: the campaign has ended.
        """
        with self._database.writing() as connection:
            campaign = locked(connection, campaign_id)
            if campaign.state in FINAL:
                what = f"the campaign has ended ({campaign.state}), and takes no more items"
                raise GridError(what, where=campaign_id, advice="start another campaign")
            _change(connection, campaigns.c.key == campaign.key, total=campaign.total + count)
            return int(campaign.total)

    def campaign(self, campaign_id: str) -> Campaign:
        """The campaign of this id, or of the one id that starts so."""
        with self._database.reading() as connection:
            same = read_campaigns(connection, select(campaigns).where(campaigns.c.id == campaign_id))
            if same:
                return same[0]
            starts = campaigns.c.id.startswith(campaign_id, autoescape=True) if campaign_id else false()
            found = read_campaigns(connection, select(campaigns).where(starts).order_by(campaigns.c.id))
        if len(found) != 1:
            raise unknown(campaign_id, [campaign.id[: len(campaign_id) + 8] for campaign in found])
        return found[0]

    def campaigns(self, states: Collection[CampaignState] | None = None) -> list[Campaign]:
        """All campaigns, or those in some states; the newest first."""
        query = select(campaigns).order_by(campaigns.c.created.desc(), campaigns.c.key.desc())
        if states is not None:
            query = query.where(campaigns.c.state.in_([state.value for state in states]))
        with self._database.reading() as connection:
            return read_campaigns(connection, query)

    def campaigns_to_show(self, ids: Collection[str], since: float, ended_since: float) -> list[Campaign]:
        """The campaigns that go on or ended just now, those of these ids, and those since then without a flow run."""
        goes_on = campaigns.c.state.in_([CampaignState.ACTIVE.value, CampaignState.PAUSED.value])
        is_new = and_(campaigns.c.flow_run_id == "", campaigns.c.created >= since)
        wanted = or_(goes_on, is_new, campaigns.c.ended_at >= ended_since, campaigns.c.id.in_(ids))
        with self._database.reading() as connection:
            return read_campaigns(connection, select(campaigns).where(wanted).order_by(campaigns.c.key.desc()))

    def set_campaign_state(
        self,
        campaign_id: str,
        state: CampaignState,
        reason: str = "",
        ended_at: float | None = None,
        total: int | None = None,
    ) -> bool:
        """Change what a campaign does; says whether it has. One that has ended stays what it is.

        So does one that has another number of items than `total`: some were added meanwhile.
        """
        with self._database.writing() as connection:
            key = key_of(connection, campaign_id)
            goes_on = and_(campaigns.c.key == key, campaigns.c.state.not_in(FINAL))
            if total is not None:
                goes_on = and_(goes_on, campaigns.c.total == total)
            return _change(connection, goes_on, state=state.value, reason=reason, ended_at=ended_at) > 0

    def close_campaign(self, campaign_id: str) -> None:
        """Have a campaign end once all its items have ended."""
        with self._database.writing() as connection:
            key = key_of(connection, campaign_id)
            chosen = connection.execute(select(campaigns.c.options).where(campaigns.c.key == key)).scalar_one()
            _change(connection, campaigns.c.key == key, options={**json.loads(chosen), "open": False})

    def set_cluster(
        self,
        campaign_id: str,
        cluster: str,
        *,
        state: str | None = None,
        reason: str | None = None,
        mean_seconds: float | None = None,
    ) -> None:
        """Change what is given of a campaign's cluster.

        Raises:
            GridError: the campaign has no such cluster.
        """
        given = {"state": state, "reason": reason, "mean_seconds": mean_seconds}
        values = columns_of({name: value for name, value in given.items() if value is not None})
        if not values:
            return
        with self._database.writing() as connection:
            key = key_of(connection, campaign_id)
            here = and_(shares.c.campaign == key, shares.c.cluster == cluster)
            if connection.execute(update(shares).where(here).values(values)).rowcount == 0:
                raise GridError(f"the campaign has no cluster {cluster!r}", where=campaign_id)

    def set_flow_run(self, campaign_id: str, flow_run_id: str) -> None:
        """Note a campaign's flow run in Prefect."""
        with self._database.writing() as connection:
            _change(connection, campaigns.c.key == key_of(connection, campaign_id), flow_run_id=flow_run_id)

    def delete_campaign(self, campaign_id: str) -> None:
        """Remove all rows of a campaign; nothing where there is none. Its pilots are the caller's care."""
        with self._database.writing() as connection:
            key = connection.execute(select(campaigns.c.key).where(campaigns.c.id == campaign_id)).scalar()
            if key is None:
                return
            for table in (items, bundles, pilots, shares):
                connection.execute(delete(table).where(table.c.campaign == key))
            for table in (events, usage):
                connection.execute(delete(table).where(table.c.campaign == campaign_id))
            connection.execute(delete(campaigns).where(campaigns.c.key == key))

    # ---- pilots

    def add_pilot(self, campaign_id: str, cluster: str, workers: int, now: float) -> int:
        """Note a new pilot, in the state "requested"; gives its id, which is never used again."""
        with self._database.writing() as connection:
            values = {"campaign": key_of(connection, campaign_id), "cluster": text_of(cluster), "workers": workers}
            blank = {"run_id": "", "state": "requested", "cause": "", "message": ""}
            zero = {"results_offset": 0, "succeeded": 0, "failed": 0}
            made = connection.execute(insert(pilots).values(**values, **blank, **zero, created=now))
            (pilot_id,) = made.inserted_primary_key or (0,)
            return int(pilot_id)

    def update_pilot(self, pilot_id: int, **changes: Any) -> None:
        """Change fields of a pilot.

        Raises:
            TypeError: a pilot has no such field, or the store alone changes it.
        """
        if wrong := changes.keys() - _PILOT_FIELDS:
            raise TypeError(f"no fields of a pilot that may be changed: {', '.join(sorted(wrong))}")
        with self._database.writing() as connection:
            connection.execute(update(pilots).where(pilots.c.id == pilot_id).values(columns_of(changes)))

    def pilots(self, campaign_id: str | None = None, live: bool | None = None) -> list[Pilot]:
        """All pilots, those of a campaign, those that have not ended (`live`) or have; the oldest first."""
        query = pilot_columns().order_by(pilots.c.id)
        if campaign_id is not None:
            query = query.where(campaigns.c.id == campaign_id)
        if live is not None:
            query = query.where(pilots.c.state != "ended" if live else pilots.c.state == "ended")
        with self._database.reading() as connection:
            return read_pilots(connection, query)

    # ---- items on their way

    def lease(self, pilot_id: int, campaign_id: str, size: int, now: float) -> Bundle | None:
        """Lease items to a pilot: those that never were, in order; then those that wait again and are due.

        Returns:
            The bundle, of `size` items at most; None where the campaign is not active, or has nothing to be had now.
        """
        with self._database.writing() as connection:
            return leases.lease(connection, pilot_id, campaign_id, size, now)

    def lease_interrupted(self, pilot_id: int, campaign_id: str, size: int) -> Bundle | None:
        """Lease items that a pilot's time limit has ended before: `lease` leaves them, since they need much time.

        Returns:
            The bundle; None where the campaign is not active, or has no such items.
        """
        with self._database.writing() as connection:
            return leases.lease_interrupted(connection, pilot_id, campaign_id, size)

    def live_bundles(self, pilot_id: int | None = None) -> list[Bundle]:
        """The bundles, of all pilots or of one, with items that have no outcome yet; the oldest first."""
        query = bundle_columns().where(LIVE)
        if pilot_id is not None:
            query = query.where(bundles.c.pilot == pilot_id)
        with self._database.reading() as connection:
            # (Sorted by the database, SQLite would read the rows of all bundles that ever were.)
            return sorted(map(bundle_of, connection.execute(query)), key=lambda bundle: bundle.id)

    def record(
        self,
        pilot_id: int,
        campaign_id: str,
        results_offset: int,
        outcomes: Sequence[ItemOutcome],
        retries: Sequence[ItemRetry],
        outcomes_size: int,
        now: float,  # noqa: ARG002 - part of the interface that the engine calls
    ) -> Recorded:
        """Record what a pilot said of its items, and how far its results are read.

        The first outcome of an item stays; what comes later for it is counted, and changes nothing.

        Args:
            results_offset: the bytes of the pilot's results that are recorded with this.
            outcomes_size: the size of the campaign's outcome log, which has been synced.
        """
        with self._database.writing() as connection:
            return recording.record(connection, pilot_id, campaign_id, results_offset, outcomes, retries, outcomes_size)

    def give_back(self, bundle_ids: Sequence[int]) -> int:
        """End bundles that were withdrawn or lost: their items without an outcome wait again, as often tried as before.

        Those of a cancelled campaign are cancelled. A bundle that has ended is passed over.

        Returns:
            How many items came back.
        """
        with self._database.writing() as connection:
            return leases.give_back(connection, bundle_ids)

    def cancel(self, campaign_id: str, now: float, reason: str = "") -> bool:  # noqa: ARG002 - as above
        """Cancel a campaign with all items that are in no bundle; `finish_cancel` ends it, when its pilots have ended.

        Returns:
            Whether it has; False for a campaign that had ended.
        """
        with self._database.writing() as connection:
            return leases.cancel(connection, campaign_id, text_of(reason))

    def finish_cancel(self, campaign_id: str, now: float) -> None:
        """End a cancelled campaign: what its pilots still had is cancelled. A second time changes nothing."""
        with self._database.writing() as connection:
            leases.finish_cancel(connection, campaign_id, now)

    def cancel_items(self, campaign_id: str, places: Mapping[int, tuple[int, int]], outcomes_size: int) -> int:
        """End items alone that have not ended; the others of the campaign go on. What a pilot says of them comes late.

        Args:
            places: the items, each with the place and the length of its frame in the outcome log.
            outcomes_size: the size of the outcome log.

        Returns:
            How many have ended by it.

        Raises:
            GridError: the campaign has ended.
        """
        with self._database.writing() as connection:
            return leases.cancel_items(connection, campaign_id, places, outcomes_size)

    def failed_with_outcome(self, campaign_id: str, only: Collection[int] | None = None) -> list[int]:
        """The items without a value, among all or among some, that have an outcome in the log."""
        with self._database.writing() as connection:
            return resubmission.with_outcome(connection, campaign_id, only)

    def resubmit(self, campaign_id: str, only: Collection[int] | None, outcomes_size: int) -> int:
        """Have items wait again that have failed, crashed or were cancelled, as if they had never been tried.

        A campaign that has ended goes on by it.

        Args:
            only: some items; None for all. Those that have a value or have not ended are passed over.
            outcomes_size: the size of the outcome log, which says of each item with an outcome that it waits.

        Returns:
            How many items wait by it.

        Raises:
            GridError: there is no such item, or the campaign is being cancelled.
        """
        with self._database.writing() as connection:
            return resubmission.resubmit(connection, campaign_id, only, outcomes_size)

    # ---- items as they are shown

    def ended_among(self, campaign_id: str, numbers: Collection[int]) -> set[int]:
        """Which of these items have ended."""
        columns = (items.c.number, items.c.state)
        with self._database.reading() as connection:
            rows = rows_of(connection, key_of(connection, campaign_id), numbers, columns)
            return {number for number, state in rows if ItemState(state).final}

    def attempts(self, campaign_id: str, numbers: Collection[int]) -> dict[int, tuple[int, int]]:
        """How often these items were tried, and how many of the attempts ended by the death of a worker.

        An item that was never tried may be missing.
        """
        columns = (items.c.number, items.c.attempts, items.c.crashes)
        with self._database.reading() as connection:
            rows = rows_of(connection, key_of(connection, campaign_id), numbers, columns)
            return {number: (attempts, crashes) for number, attempts, crashes in rows}

    def interruptions(self, campaign_id: str, numbers: Collection[int]) -> dict[int, int]:
        """How often pilots' time limits have ended these items; one that was never tried may be missing."""
        columns = (items.c.number, items.c.interruptions)
        with self._database.reading() as connection:
            found = rows_of(connection, key_of(connection, campaign_id), numbers, columns)
            return {row.number: row.interruptions for row in found}

    def next_due(self, campaign_id: str) -> float:
        """When the first of the waiting items may be tried again; 0 for no item."""
        with self._database.reading() as connection:
            here = and_(items.c.campaign == key_of(connection, campaign_id), WAITING)
            return float(connection.execute(select(func.min(items.c.not_before)).where(here)).scalar() or 0.0)

    def has_interrupted(self, campaign_id: str) -> bool:
        """Whether items wait that a pilot's time limit has ended."""
        with self._database.reading() as connection:
            here = items.c.campaign == key_of(connection, campaign_id)
            return connection.execute(select(items.c.number).where(here, INTERRUPTED).limit(1)).first() is not None

    def items(self, campaign_id: str, first: int, count: int) -> list[ItemRow]:
        """Items of a campaign as they are shown, by their numbers from `first` on; fewer where it has fewer."""
        with self._database.reading() as connection:
            return item_table.shown(connection, campaign_id, first, count)

    def outcome_of(self, campaign_id: str, number: int) -> tuple[int, int, ItemState] | None:
        """Offset and length of an item's outcome in the log, and its state; None where it has no outcome."""
        columns = (items.c.number, items.c.place, items.c.length, items.c.state)
        with self._database.reading() as connection:
            for _, place, length, state in rows_of(connection, key_of(connection, campaign_id), [number], columns):
                return (place, length, ItemState(state)) if place is not None else None
        return None

    # ---- events

    def add_event(
        self,
        campaign_id: str,
        cluster: str,
        level: str,
        code: str,
        group: str,
        message: str,
        count: int,
        now: float,
    ) -> bool:
        """Add `count` to the open event of this campaign, cluster, code and group; says whether it has opened one."""
        kind = {"campaign": campaign_id, "cluster": cluster, "code": code, "group": group}
        values = columns_of({**kind, "level": level, "message": message})
        times = {"first_at": now, "last_at": now}
        with self._database.writing() as connection:
            new = self._database.upsert(events).values(**values, **times, count=count, open=1)
            latest = {name: new.excluded[name] for name in ("level", "message", "last_at")}
            added = events.c.count + new.excluded["count"]
            changes = {**latest, "count": added}
            change = new.on_conflict_do_update(index_elements=list(kind), index_where=OPEN, set_=changes)
            total: int = connection.execute(change.returning(events.c.count)).scalar_one()
        return total == count

    def events(self, campaign_id: str | None = None, open_only: bool = True) -> list[GridEvent]:
        """The events, of all campaigns or of one, the newest first."""
        query = event_columns()
        if campaign_id is not None:
            query = query.where(events.c.campaign == campaign_id)
        if open_only:
            query = query.where(OPEN)
        with self._database.reading() as connection:
            return read_events(connection, query)

    def close_events(self, campaign_id: str, cluster: str, code: str) -> int:
        """Close the open events of one kind; says how often they had happened."""
        here = and_(events.c.campaign == campaign_id, events.c.cluster == text_of(cluster), events.c.code == code, OPEN)
        with self._database.writing() as connection:
            counts = connection.execute(update(events).where(here).values(open=0).returning(events.c.count)).scalars()
            return sum(counts)

    def close_event(self, event_id: int) -> bool:
        """Close an event, so that the next one of its kind opens another; says whether it was open."""
        with self._database.writing() as connection:
            return connection.execute(update(events).where(events.c.id == event_id, OPEN).values(open=0)).rowcount > 0


_MAP_CHANGES = ("reason", "ended_at", "next_number", "succeeded", "failed", "cancelled")
_PILOT_FIELDS = {field.name for field in dataclasses.fields(Pilot)} - {"id", "campaign", "succeeded", "failed"}


def _change(connection: Connection, where: ColumnElement[bool], **values: Any) -> int:
    """Change campaigns; gives how many."""
    return connection.execute(update(campaigns).where(where).values(columns_of(values))).rowcount
