"""A cluster that engines of several users share: each says what it has and wants there, and sees what others do.

An engine decides in a transaction that keeps the cluster locked: of several engines one after the other decides, by
the same tables, so that together they start no more pilots than the cluster's cap allows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, insert, select

from slurm_ray_flow.core.grid.fairness import Account, Claim
from slurm_ray_flow.grid.rows import columns_of, text_of
from slurm_ray_flow.grid.tables import claims as table
from slurm_ray_flow.grid.tables import usage
from slurm_ray_flow.grid.users import NOW

ASKING_SECONDS = 30.0
"""What an engine wants counts for so long after it has said so."""
HOLDING_SECONDS = 300.0
"""Its pilots count for so long: without an engine they have ended by then, since they have work for two minutes, and
wait two minutes for more."""


@dataclasses.dataclass(frozen=True)
class Others:
    """What other users have and want on a cluster.

    Attributes:
        claims: of those whose engines are there.
        expected: core-seconds by campaign that count besides what was charged.
        pilots: how many they have.
        leaving: how many of these are about to end.
        accounts: their virtual times.
    """

    claims: tuple[Claim, ...] = ()
    expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pilots: int = 0
    leaving: int = 0
    accounts: Mapping[tuple[str, str], Account] = dataclasses.field(default_factory=dict)


class SharedCluster:
    """One cluster, in a transaction that keeps others from deciding about it."""

    def __init__(self, connection: Connection, cluster: str, user: str) -> None:
        self._connection, self._cluster, self._user = connection, cluster, user

    def others(self) -> Others:
        """What the others have and want."""
        query = select(table, (NOW - table.c.seen_at).label("age")).where(
            table.c.cluster == self._cluster, table.c.user != self._user
        )
        rows = [row for row in self._connection.execute(query) if row.age < HOLDING_SECONDS]
        fields = {field.name for field in dataclasses.fields(Claim)}
        claims: list[Claim] = []
        expected: dict[str, float] = {}
        leaving = 0
        for row in rows:
            if row.age < ASKING_SECONDS:
                said = json.loads(row.claims)
                leaving += said["leaving"]
                expected |= said["expected"]
                claims += [Claim(**{name: one[name] for name in one if name in fields}) for one in said["claims"]]
        accounts = read_usage(self._connection, {}, self._cluster).get(self._cluster, {})
        theirs = {key: account for key, account in accounts.items() if key[0] != self._user}
        return Others(tuple(claims), expected, sum(row.pilots for row in rows), leaving, theirs)

    def publish(self, claims: Collection[Claim], expected: Mapping[str, float], pilots: int, leaving: int) -> None:
        """Say what this user's engine has and wants, in the place of what it said before."""
        own = (table.c.cluster == self._cluster) & (table.c.user == self._user)
        self._connection.execute(delete(table).where(own))
        if claims or pilots:
            said = {"claims": list(map(dataclasses.asdict, claims)), "expected": dict(expected), "leaving": leaving}
            values = {"cluster": self._cluster, "user": self._user, "claims": json.dumps(said), "pilots": pilots}
            self._connection.execute(insert(table).values(**values, seen_at=NOW))

    def keep_usage(self, accounts: Mapping[tuple[str, str], Account]) -> None:
        """Keep the virtual times of this user."""
        write_usage(self._connection, self._cluster, accounts, self._user)


def read_usage(
    connection: Connection, names: Mapping[str, str], place: str = ""
) -> dict[str, dict[tuple[str, str], Account]]:
    """The virtual times of users and campaigns, on each cluster or on one.

    Args:
        connection: a transaction.
        names: other names for some clusters.
        place: the one cluster; "" for all.
    """
    found: dict[str, dict[tuple[str, str], Account]] = {}
    for row in connection.execute(select(usage).where(usage.c.cluster == text_of(place)) if place else select(usage)):
        account = Account(row.virtual, row.largest, row.decayed_at)
        found.setdefault(names.get(row.cluster, row.cluster), {})[row.user, row.campaign] = account
    return found


def write_usage(
    connection: Connection, place: str, accounts: Mapping[tuple[str, str], Account], only_user: str | None
) -> None:
    """See `Store.keep_usage`."""
    rows = [
        columns_of({"cluster": place, "user": user, "campaign": campaign})
        | {"virtual": account.virtual, "largest": account.largest, "decayed_at": account.decayed_at}
        for (user, campaign), account in accounts.items()
        if only_user in {None, user}
    ]
    before = delete(usage).where(usage.c.cluster == text_of(place))
    connection.execute(before if only_user is None else before.where(usage.c.user == text_of(only_user)))
    if rows:
        connection.execute(insert(usage), rows)
