"""What the tables have of clusters, and clusters that engines of several users share.

Each engine says what it has and wants on a cluster with a cap, and sees what others do.

An engine decides in a transaction that keeps the cluster locked: of several engines one after the other decides, by
the same tables, so that together they start no more pilots than the cluster's cap allows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from collections.abc import Collection, Iterator, Mapping

from sqlalchemy import Connection, delete, insert, select

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid.fairness import Account, Claim
from slurm_ray_flow.core.grid.model import Drain
from slurm_ray_flow.grid.database import Database
from slurm_ray_flow.grid.rows import columns_of, read_drains, text_of
from slurm_ray_flow.grid.tables import caps, drains, usage
from slurm_ray_flow.grid.tables import claims as table
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


class ClusterTables:
    """What the tables have of clusters, whatever campaigns use them: drains, virtual times, caps."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def is_file(self) -> bool:
        """Whether the database is a file of this home, which no engine of another home uses."""
        return self._database.is_sqlite

    # ---- drained clusters

    def drain(self, drain: Drain) -> None:
        """Note that no campaign gets a pilot on a cluster; one that is drained already has what is said last."""
        values = columns_of(vars(drain))
        said = {name: value for name, value in values.items() if name != "cluster"}
        with self._database.writing() as connection:
            new = self._database.upsert(drains).values(values)
            connection.execute(new.on_conflict_do_update(index_elements=["cluster"], set_=said))

    def undrain(self, cluster: str) -> bool:
        """Have campaigns use a cluster again; says whether it was drained."""
        with self._database.writing() as connection:
            return connection.execute(delete(drains).where(drains.c.cluster == text_of(cluster))).rowcount > 0

    def drains(self) -> list[Drain]:
        """The clusters that are drained."""
        with self._database.reading() as connection:
            return read_drains(connection)

    # ---- fair shares

    def usage(self) -> dict[str, dict[tuple[str, str], Account]]:
        """The virtual times of users and campaigns on each cluster, as `keep_usage` was given them."""
        with self._database.reading() as connection:
            return read_usage(connection, {self._place_of("local"): "local"})

    def keep_usage(
        self, cluster: str, accounts: Mapping[tuple[str, str], Account], only_user: str | None = None
    ) -> None:
        """Keep the virtual times of a cluster, in the place of those that were kept before.

        Args:
            cluster: its name.
            accounts: the virtual times.
            only_user: keep those of this user alone, and leave what engines of others have kept.
        """
        with self._database.writing() as connection:
            write_usage(connection, self._place_of(cluster), accounts, only_user)

    @contextlib.contextmanager
    def sharing(self, cluster: str, user: str) -> Iterator[SharedCluster]:
        """A cluster about which the engine of this user decides in the block, and no other one."""
        place = self._place_of(cluster)
        with self._database.locking(f"cluster {place}") as connection:
            yield SharedCluster(connection, place, user)

    def _place_of(self, cluster: str) -> str:
        """A cluster's name for the engines of all users: "local" is another machine for each host."""
        return cluster if self.is_file or cluster != "local" else f"local on {socket.gethostname()}"

    def caps(self) -> dict[str, int]:
        """The caps that were set, by the names of clusters."""
        with self._database.reading() as connection:
            return {row.cluster: row.cap for row in connection.execute(select(caps).order_by(caps.c.cluster))}

    def set_cap(self, cluster: str, cap: int | None) -> None:
        """Set how many pilots all campaigns together may have on a cluster; None as its kind has it.

        Raises:
            OptionError: this can't be a cap.
        """
        if cap is not None and cap < 1:
            raise OptionError(f"a cluster's cap of {cap} pilots must be 1 or more", advice="pause campaigns instead")
        with self._database.locking("caps") as connection:
            connection.execute(delete(caps).where(caps.c.cluster == text_of(cluster)))
            if cap is not None:
                connection.execute(insert(caps).values(cluster=text_of(cluster), cap=cap))
