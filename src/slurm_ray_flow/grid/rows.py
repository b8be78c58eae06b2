"""Rows of the grid's tables as the dataclasses of `core/grid/model.py`, and back."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, insert, select

from slurm_ray_flow.core.artifacts import short_name
from slurm_ray_flow.core.errors import UnknownCampaignError
from slurm_ray_flow.core.grid.model import (
    Bundle,
    Campaign,
    CampaignState,
    ClusterShare,
    Drain,
    GridEvent,
    Pilot,
    Ranges,
)
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.grid.tables import bundles, campaigns, drains, events, items, pilots, shares

ERROR_LETTERS = 500
"""So much of an error's text is kept with its item."""


def text_of(value: str) -> str:
    """A text as each database takes it: without surrogates, and without the letter of number 0."""
    return encodable(value).replace("\0", "\\x00")


def campaign_values(campaign: Campaign) -> dict[str, Any]:
    """The columns of a campaign's row."""
    values = {field.name: getattr(campaign, field.name) for field in dataclasses.fields(campaign)}
    del values["clusters"]
    return columns_of({**values, "state": campaign.state.value})


def share_values(key: int, share: ClusterShare) -> dict[str, Any]:
    """The columns of the row of a campaign's cluster."""
    return columns_of({"campaign": key, **vars(share)})


def columns_of(values: dict[str, Any]) -> dict[str, Any]:
    """Values as columns hold them."""
    return {name: _column_of(value) for name, value in values.items()}


def _column_of(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return text_of(value) if isinstance(value, str) else value


def read_campaigns(connection: Connection, query: Select[Any]) -> list[Campaign]:
    """The campaigns that a query of whole rows gives, in its order."""
    rows = connection.execute(query).mappings().all()
    clusters: dict[int, list[ClusterShare]] = defaultdict(list)
    drained = {drain.cluster: drain for drain in read_drains(connection)}
    held = select(shares).where(shares.c.campaign.in_([row["key"] for row in rows]))
    for share in connection.execute(held.order_by(shares.c.position)).mappings():
        fields = {name: value for name, value in share.items() if name != "campaign"}
        drain = drained.get(short_name(share["cluster"])) if share["state"] == "open" else None
        shown = {"state": "drained", "reason": drain.text} if drain else {}
        clusters[share["campaign"]].append(ClusterShare(**{**fields, "options": json.loads(share["options"]), **shown}))
    return [_campaign(dict(row), tuple(clusters[row["key"]])) for row in rows]


def read_drains(connection: Connection) -> list[Drain]:
    """The clusters that are drained, by their names."""
    return [Drain(**row) for row in connection.execute(select(drains).order_by(drains.c.cluster)).mappings()]


def _campaign(row: dict[str, Any], clusters: tuple[ClusterShare, ...]) -> Campaign:
    del row["key"]
    row.update(options=json.loads(row["options"]), state=CampaignState(row["state"]))
    return Campaign(**row, clusters=clusters)


def key_of(connection: Connection, campaign_id: str) -> int:
    """The number of a campaign's row.

    Raises:
        UnknownCampaignError: there is none of this id.
    """
    key: int | None = connection.execute(select(campaigns.c.key).where(campaigns.c.id == campaign_id)).scalar()
    if key is None:
        raise unknown(campaign_id)
    return key


def locked(connection: Connection, campaign_id: str) -> Row[Any]:
    """A campaign's row, which no other transaction changes before this one ends.

    Raises:
        UnknownCampaignError: there is none of this id.
    """
    row = connection.execute(select(campaigns).where(campaigns.c.id == campaign_id).with_for_update()).first()
    if row is None:
        raise unknown(campaign_id)
    return row


def unknown(campaign_id: str, matches: Sequence[str] = ()) -> UnknownCampaignError:
    """The error for an id that names no campaign, or several."""
    what = f"there is no campaign {campaign_id!r}"
    if matches:
        what = f"{len(matches)} campaigns start with {campaign_id!r}: {', '.join(matches[:4])}"
    return UnknownCampaignError(what, advice="`srf grid stat` lists them")


def bundle_columns() -> Select[Any]:
    """The query of all bundles, with the ids of their campaigns."""
    named = campaigns.c.id.label("campaign_id")
    return select(bundles, named).join(campaigns, campaigns.c.key == bundles.c.campaign)


def bundle_of(row: Row[Any]) -> Bundle:
    """A row of `bundle_columns`."""
    return Bundle(row.id, row.pilot, row.campaign_id, ranges_from(row.numbers), row.size, row.ended)


def ranges_from(text: str) -> Ranges:
    """The numbers of a bundle's row."""
    return tuple((first, count) for first, count in json.loads(text))


def read_pilots(connection: Connection, query: Select[Any]) -> list[Pilot]:
    """The pilots that a query of `pilot_columns` gives."""
    return [Pilot(**row) for row in connection.execute(query).mappings()]


def pilot_columns() -> Select[Any]:
    """The query of all pilots, with the ids of their campaigns."""
    own = [column for column in pilots.c if column.name != "campaign"]
    return select(*own, campaigns.c.id.label("campaign")).join(campaigns, campaigns.c.key == pilots.c.campaign)


def read_events(connection: Connection, query: Select[Any]) -> list[GridEvent]:
    """The events that a query of whole rows gives."""
    return [GridEvent(**{**row, "open": bool(row["open"])}) for row in connection.execute(query).mappings()]


def event_columns() -> Select[Any]:
    """The query of all events, the newest first."""
    return select(events).order_by(events.c.last_at.desc(), events.c.id.desc())


def rows_of(connection: Connection, key: int, numbers: Collection[int], columns: Sequence[Any]) -> list[Row[Any]]:
    """Columns, of which `number` is the first one, of the rows that there are of these items."""
    found: list[Row[Any]] = []
    query = select(*columns).where(items.c.campaign == key)
    for part in chunks(sorted(numbers)):
        if part[-1] - part[0] < 2 * len(part):  # mostly neighbours: two bounds are a much shorter question
            wanted = set(part)
            rows = connection.execute(query.where(items.c.number.between(part[0], part[-1])))
            found += [row for row in rows if row[0] in wanted]
        else:
            found += connection.execute(query.where(items.c.number.in_(part)))
    return found


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that have the same columns, with plain values: no enums.

    SQLAlchemy's own way looks at each value in Python, which takes twice as long as the database does.
    """
    compiled = insert(table).compile(dialect=connection.dialect, column_keys=list(rows[0]))
    if names := compiled.positiontup:  # SQLite's values have places, PostgreSQL's have names
        values_of = operator.itemgetter(*names)
        connection.exec_driver_sql(str(compiled), [values_of(row) for row in rows])
    else:
        connection.exec_driver_sql(str(compiled), list(rows))


def error_of(text: str) -> str | None:
    """An error's text as it is kept with an item."""
    return text_of(text[:ERROR_LETTERS]) if text else None


def chunks(numbers: Iterable[int], size: int = 900) -> Iterable[list[int]]:
    """Numbers in parts that one query takes: old versions of SQLite allow 999 values."""
    held = list(numbers)
    return (held[start : start + size] for start in range(0, len(held), size))
