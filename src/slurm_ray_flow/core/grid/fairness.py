"""Fair shares of a cluster: start-time fair queueing on core-seconds, users first, then the campaigns of each.

Each user, and each campaign among its user's, has a virtual time: the core-seconds that it was given, by its weight.
Whoever waits with the least virtual time comes next. One that newly waits begins at the least virtual time of those
that have work: it comes soon, and what it did not use before is gone. So, while two users have work on a cluster, what
they got by their weights differs at most by a bundle of each. Pure; times are given by the caller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import Campaign

HALF_LIFE = 86_400.0
"""Seconds in which half of a lead of more than a bundle goes: such leads come from wrong estimates."""
TURN_STARTS, SHORTEST_TURN, LONGEST_TURN = 10.0, 5.0, 600.0
"""A pilot keeps its place for so many times what a start takes, so that starts cost a tenth at most; clamped."""
TEST_ITEMS = 100
"""The most items of a campaign in test mode, which goes before all others of its user."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a campaign has and wants on one cluster.

    Attributes:
        user, campaign: whose it is.
        weight: its part among the campaigns of its user.
        user_weight: its user's part among all users.
        priority: among its user's campaigns those of the highest priority come first, whatever they had.
        test: whether it is in test mode: it comes before all of its user's that are not.
        cores: the cores of one pilot.
        held: the cores of its pilots that stay.
        wanted: how many more pilots it could use.
    """

    user: str
    campaign: str
    weight: float = 1.0
    user_weight: float = 1.0
    priority: int = 0
    test: bool = False
    cores: float = 1.0
    held: float = 0.0
    wanted: int = 1

    @property
    def rank(self) -> tuple[bool, int]:
        """What counts before virtual time among the campaigns of one user; the least comes first."""
        return not self.test, -self.priority


@dataclasses.dataclass
class Account:
    """The virtual time of a user or a campaign.

    Attributes:
        virtual: core-seconds by weight.
        largest: the largest charge so far, by weight.
        decayed_at: the time up to which a lead has decayed.
        served: the number of its last grant; -1 for none yet.
    """

    virtual: float = 0.0
    largest: float = 0.0
    decayed_at: float = 0.0
    served: int = -1


class FairQueue:
    """The accounts of those that share something. The active ones have work."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.floor = 0.0
        self.expected: dict[str, float] = {}
        self._active: set[str] = set()
        self._grants = 0

    @property
    def active(self) -> Collection[str]:
        """The names of those that have work."""
        return self._active

    def join(self, names: Iterable[str], now: float) -> None:
        """Begin to have work, with the least virtual time of those that have some, or an own later one."""
        base = self.base
        for name in names:
            if name not in self._active:
                account = self.accounts.setdefault(name, Account(decayed_at=now))
                account.virtual = max(account.virtual, base)
                self._active.add(name)

    def restore(self, accounts: Mapping[str, Account]) -> None:
        """Go on with accounts of an earlier process, all of whose `telling` ones these are."""
        self.accounts.update(accounts)
        self.floor = max(self.floor, min((account.virtual for account in accounts.values()), default=0.0))

    @property
    def telling(self) -> dict[str, Account]:
        """The accounts that say something: those of whoever has work, and those that are ahead."""
        base = self.base
        return {
            name: account for name, account in self.accounts.items() if name in self._active or account.virtual > base
        }

    def leave(self, name: str) -> None:
        """Have no work any more. The account stays, for a lead that is to be remembered."""
        if name in self._active:
            self.floor = max(self.floor, self.base)
            self._active.discard(name)

    @property
    def base(self) -> float:
        """The virtual time at which a newcomer begins."""
        return min((self.order(name)[0] for name in self._active), default=self.floor)

    def charge(self, name: str, cost: float, now: float) -> None:
        """Add what was given, by weight."""
        account = self.accounts.setdefault(name, Account(decayed_at=now))
        account.virtual += cost
        account.largest = max(account.largest, cost)
        self._grants += 1
        account.served = self._grants

    def correct(self, name: str, difference: float) -> None:
        """Add the difference between what was taken and what was charged for it."""
        if name in self.accounts:
            self.accounts[name].virtual += difference

    def order(self, name: str) -> tuple[float, int]:
        """The least comes first: by virtual time with what is expected, then whoever was served longest ago."""
        account = self.accounts[name]
        return account.virtual + self.expected.get(name, 0.0), account.served

    def expect(self, name: str, cost: float) -> None:
        """Count a charge that is to come, or one that can be taken back (below 0), until it is expected anew."""
        self.expected[name] = self.expected.get(name, 0.0) + cost

    def decay(self, now: float) -> None:
        """Halve leads of more than a bundle for each half-life that has passed; those of accounts that have time."""
        base = self.base
        for account in self.accounts.values():
            passed, account.decayed_at = max(now - account.decayed_at, 0.0), now
            excess = account.virtual - base - account.largest
            if excess > 0:
                account.virtual -= excess * (1 - 0.5 ** (passed / HALF_LIFE))


class Ledger:
    """The accounts of one cluster: users, and the campaigns of each."""

    def __init__(self) -> None:
        self.users = FairQueue()
        self.campaigns: dict[str, FairQueue] = {}

    def update(self, claims: Iterable[Claim], now: float, expected: Mapping[str, float] | None = None) -> None:
        """Note who has work on the cluster, and let old leads decay.

        Args:
            claims: those that have work.
            now: seconds since 1970.
            expected: core-seconds by campaign that are to count besides what was charged: for pilots on their way, less
                those of bundles that can be taken back.
        """
        claims = list(claims)
        for queue in (self.users, *self.campaigns.values()):
            queue.expected = {}
        for claim in claims:
            self.expect(claim, (expected or {}).get(claim.campaign, 0.0))
        working: dict[str, set[str]] = {}
        for claim in claims:
            working.setdefault(claim.user, set()).add(claim.campaign)
        for user in [user for user in self.users.active if user not in working]:
            self.users.leave(user)
        for user, queue in self.campaigns.items():
            for campaign in [campaign for campaign in queue.active if campaign not in working.get(user, ())]:
                queue.leave(campaign)
        self.users.join(sorted(working), now)
        for user, names in working.items():
            self.campaigns.setdefault(user, FairQueue()).join(sorted(names), now)
        self.decay(now)

    def expect(self, claim: Claim, cost: float) -> None:
        """Count core-seconds that are to come, until the next update."""
        self.users.expect(claim.user, cost / claim.user_weight)
        self.campaigns.setdefault(claim.user, FairQueue()).expect(claim.campaign, cost / claim.weight)

    def decay(self, now: float) -> None:
        """See `FairQueue.decay`."""
        for queue in (self.users, *self.campaigns.values()):
            queue.decay(now)

    def charge(self, claim: Claim, cost: float, now: float) -> None:
        """Charge a lease of so many core-seconds, by estimate."""
        self.users.charge(claim.user, cost / claim.user_weight, now)
        self.campaigns.setdefault(claim.user, FairQueue()).charge(claim.campaign, cost / claim.weight, now)

    def correct(self, claim: Claim, difference: float) -> None:
        """Correct a charge by what the items have taken, or by what came back without being run."""
        self.users.correct(claim.user, difference / claim.user_weight)
        if claim.user in self.campaigns:
            self.campaigns[claim.user].correct(claim.campaign, difference / claim.weight)

    def accounts(self) -> dict[tuple[str, str], Account]:
        """What another process needs to be as fair: accounts by user and campaign, "" for the user's own."""
        found = {(user, ""): account for user, account in self.users.telling.items()}
        for user, queue in self.campaigns.items():
            found.update({(user, campaign): account for campaign, account in queue.telling.items()})
        return found

    def restore(self, accounts: Mapping[tuple[str, str], Account]) -> None:
        """Go on with what `accounts` gave in another process."""
        self.users.restore({user: account for (user, campaign), account in accounts.items() if not campaign})
        for user in {user for user, campaign in accounts if campaign}:
            own = {campaign: account for (one, campaign), account in accounts.items() if one == user and campaign}
            self.campaigns.setdefault(user, FairQueue()).restore(own)

    def follow(self, accounts: Mapping[tuple[str, str], Account]) -> None:
        """Take over the accounts of users whose leases another process charges.

        No process knows whom others have served last, so equals come in the order of their names, in all processes.
        """
        for (user, campaign), account in accounts.items():
            queue = self.campaigns.setdefault(user, FairQueue()) if campaign else self.users
            queue.accounts[campaign or user] = account
        for account in self.users.accounts.values():
            account.served = -1

    def forget(self, user: str, campaign: str) -> None:
        """Drop the account of a campaign that has ended. That of its user stays."""
        if queue := self.campaigns.get(user):
            queue.leave(campaign)
            queue.accounts.pop(campaign, None)

    def next_of(self, waiting: Collection[Claim]) -> Claim | None:
        """Whose turn it is among those that wait: the user's first, then the campaign's.

        Args:
            waiting: those that could use what there is; `update` has been told of all of them.
        """
        if not waiting:
            return None
        user = min({claim.user for claim in waiting}, key=lambda name: (self.users.order(name), name))
        queue = self.campaigns[user]
        own = (claim for claim in waiting if claim.user == user)
        return min(own, key=lambda claim: (claim.rank, queue.order(claim.campaign)))

    def is_ahead(self, holder: Claim, other: Claim) -> bool:
        """Whether a campaign has had its part, when another one waits: by users, or by campaigns of the same user."""
        if holder.user != other.user:
            return self.users.order(holder.user)[0] >= self.users.order(other.user)[0]
        queue = self.campaigns[holder.user]
        return queue.order(holder.campaign)[0] >= queue.order(other.campaign)[0]


def claim_of(campaign: Campaign, user_weight: float = 1.0) -> Claim:
    """Whose a campaign is, and what counts in its shares of any cluster."""
    options = campaign.options
    priority, is_test = int(options.get("priority") or 0), bool(options.get("test"))
    return Claim(campaign.user, campaign.id, max(campaign.weight, 1e-6), user_weight, priority=priority, test=is_test)


def check_test_mode(options: Mapping[str, Any], total: int) -> None:
    """See that a campaign in test mode, which goes before all others of its user, is small.

    Raises:
        GridError: it is not.
    """
    if options.get("test") and total > TEST_ITEMS:
        what = f"a campaign in test mode has {TEST_ITEMS} items at most, and this one has {total}"
        raise GridError(what, advice="test with fewer values, or leave the test mode")


def giver_of_place(ledger: Ledger, claims: Collection[Claim], taker: Claim) -> list[Claim]:
    """The campaigns that owe a place under the cluster's cap to one that waits; the one that is most ahead first.

    A campaign gives a place up when it is ahead, and when the one that waits does not have more than it afterwards: so
    shares settle where places can be divided, and take turns where they can't.
    """
    held_by_user: dict[str, float] = {}
    for claim in claims:
        held_by_user[claim.user] = held_by_user.get(claim.user, 0.0) + claim.held

    def owes(holder: Claim) -> bool:
        if holder.campaign == taker.campaign or holder.held <= 0:
            return False
        if holder.user == taker.user:
            if holder.rank != taker.rank:
                return taker.rank < holder.rank
            mine, theirs = holder.held / holder.weight, (taker.held + holder.cores) / taker.weight
        else:
            mine = held_by_user[holder.user] / holder.user_weight
            theirs = (held_by_user.get(taker.user, 0.0) + holder.cores) / taker.user_weight
        return theirs <= mine and ledger.is_ahead(holder, taker)

    def lead(holder: Claim) -> tuple[float, float]:
        user, campaign = ledger.users.order(holder.user), ledger.campaigns[holder.user].order(holder.campaign)
        return -user[0], -campaign[0]

    return sorted((claim for claim in claims if owes(claim)), key=lead)


def turn_seconds(start_seconds: float) -> float:
    """How long a pilot keeps its place at least, where another campaign of the same rank waits for it."""
    return min(max(TURN_STARTS * start_seconds, SHORTEST_TURN), LONGEST_TURN)


def jain(services: Collection[float]) -> float:
    """Jain's index of weighted services: 1 where all are the same, 1/n where one has all."""
    squares = sum(service * service for service in services)
    return sum(services) ** 2 / (len(services) * squares) if squares else 1.0
