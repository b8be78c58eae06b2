"""What the grid knows: campaigns, bundles, pilots and the outcomes of items. Pure; neither database nor clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, IntEnum
from typing import Any, NamedTuple

Ranges = tuple[tuple[int, int], ...]
"""Numbers of items as (first, count), in ascending order."""
PAUSES = (0.0, 10.0, 60.0, 300.0, 900.0)
"""Seconds before the first retry of an item, the second one, ...; the last one is that of all later ones."""
CRASH_LIMIT = 3
"""An item at which so many workers died is given up."""
CAMPAIGN, MAP = "campaign", "map"
"""What a row of campaigns may be: one of items in pilots, or one whose calls are runs of their own."""


class CampaignState(str, Enum):
    """What became of a campaign."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    """All items have a value."""
    FAILED = "failed"
    """It has ended, and some items have no value."""
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether no item of the campaign will be leased any more."""
        return self not in {CampaignState.ACTIVE, CampaignState.PAUSED}


class ItemState(IntEnum):
    """What became of an item that has a row."""

    WAITING = 0
    """It was returned, or is to be tried again."""
    SUCCEEDED = 1
    FAILED = 2
    CRASHED = 3
    """Too many workers died at it."""
    CANCELLED = 4
    LEASED = 5
    """It waited, and is in a bundle again. An item in its first bundle has no row."""

    @property
    def final(self) -> bool:
        """Whether the item has ended."""
        return self not in {ItemState.WAITING, ItemState.LEASED}


@dataclasses.dataclass(frozen=True)
class ClusterShare:
    """What a campaign has on one of its clusters.

    Attributes:
        cluster: the cluster's name.
        position: its place in the user's order, from 0.
        prepared: what all its pilots run, as JSON of `flows/pilot.py` `Prepared`.
        options: the options of its pilots.
        state: "open", "paused" or "quarantined"; "drained" where no campaign gets a pilot there.
        reason: why it is not open.
        mean_seconds: what an item takes there; None where none has ended.
    """

    cluster: str
    position: int = 0
    prepared: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: str = "open"
    reason: str = ""
    mean_seconds: float | None = None

    @property
    def closed(self) -> bool:
        """Whether it is closed to this campaign, until a person reopens it. A drained cluster is not: it comes back."""
        return self.state not in {"open", "drained"}


@dataclasses.dataclass(frozen=True)
class Drain:
    """A cluster where no campaign gets a pilot, until a person resumes it.

    Attributes:
        cluster: its name, without its kind.
        user: who has drained it.
        reason: why, in the words of that user; "" for none.
        since: seconds since 1970.
    """

    cluster: str
    user: str
    reason: str
    since: float

    @property
    def text(self) -> str:
        """Who has drained it, and why."""
        return f"drained by {self.user}" + (f": {self.reason}" if self.reason else "")


@dataclasses.dataclass(frozen=True)
class Campaign:
    """One function over many items.

    Attributes:
        id: 32 hexadecimal digits.
        function: the function's name, for people.
        function_digest, arguments_digest: what is run, in the store at home.
        weight: its part of the pilots, in proportion to other campaigns.
        created, ended_at: seconds since 1970; None where it has not ended.
        total: how many items it has.
        next_number: the first number that was never leased.
        succeeded, failed, cancelled: how many items have ended so; those that crashed have failed.
        waiting: how many items that were leased once wait again.
        retries: how often a failed item is tried again.
        max_failures: after so many failed items the campaign ends; None for no limit.
        max_pilots: how many pilots it may have at a time on each cluster.
        outcomes_size: the committed size of its outcome log, in bytes.
        flow_run_id: its flow run in Prefect; "" for none.
        resubmitted: how many items were resubmitted; without any the outcome log has at most one frame for each item.
        clusters: in the user's order.
    """

    id: str
    name: str
    user: str
    function: str
    function_digest: str = ""
    arguments_digest: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    state: CampaignState = CampaignState.ACTIVE
    reason: str = ""
    created: float = 0.0
    ended_at: float | None = None
    total: int = 0
    next_number: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    retries: int = 0
    max_failures: int | None = None
    max_pilots: int = 1
    outcomes_size: int = 0
    flow_run_id: str = ""
    resubmitted: int = 0
    clusters: tuple[ClusterShare, ...] = ()

    @property
    def kind(self) -> str:
        """`CAMPAIGN` or `MAP`."""
        return str(self.options.get("kind", CAMPAIGN))

    @property
    def ended(self) -> int:
        """How many items have ended."""
        return self.succeeded + self.failed + self.cancelled

    @property
    def is_open(self) -> bool:
        """Whether it takes more items once all have ended, as long as it has a pilot."""
        return bool(self.options.get("open"))

    @property
    def unleased(self) -> int:
        """How many items are in no bundle and have not ended."""
        return self.total - self.next_number + self.waiting

    @property
    def obstacle(self) -> str:
        """Why none of its clusters takes items now; "" where one does, or where the campaign does not want to."""
        if self.state is not CampaignState.ACTIVE or any(share.state == "open" for share in self.clusters):
            return ""
        pairs = ((share.cluster, share.reason if share.state == "drained" else share.state) for share in self.clusters)
        return "; ".join(f"{cluster} is {why}" for cluster, why in pairs)

    def to_json(self) -> dict[str, Any]:
        """Its fields for JSON, which `from_json` reads."""
        return {**dataclasses.asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Campaign:
        """The campaign of these fields.

        Raises:
            KeyError, TypeError, ValueError: they are none of a campaign.
        """
        shares = tuple(ClusterShare(**share) for share in fields["clusters"])
        return cls(**{**fields, "state": CampaignState(fields["state"]), "clusters": shares})

    def for_others(self) -> Campaign:
        """What users see of another one's campaign: its state, its counts and its clusters."""
        clusters = tuple(ClusterShare(one.cluster, one.position, state=one.state) for one in self.clusters)
        return dataclasses.replace(
            self, options={}, clusters=clusters, function_digest="", arguments_digest="", flow_run_id="", reason=""
        )

    @property
    def leased(self) -> int:
        """How many items are in a bundle and have not ended."""
        return self.total - self.ended - self.unleased


@dataclasses.dataclass(frozen=True)
class User:
    """One of those who share the grid's database.

    Attributes:
        name: their name in the grid; "" where one home has the database to itself.
        weight: their part of each cluster, in proportion to other users.
        is_admin: whether they may change campaigns of others, users, and caps.
        has_token: whether a token lets them in.
    """

    name: str
    weight: float = 1.0
    is_admin: bool = False
    has_token: bool = True

    def may_change(self, campaign: Campaign) -> bool:
        """Whether a campaign is theirs to change, and to look into."""
        return self.is_admin or campaign.user == self.name


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Items that are leased together. Iterating gives their numbers.

    Attributes:
        id: over all campaigns and pilots; it is never used again.
        pilot, campaign: who has it, and whose items they are.
        numbers: the items' numbers.
        size: how many items there are.
        ended: how many of them the pilot has no more to do with: they have an outcome, or wait again.
    """

    id: int
    pilot: int
    campaign: str
    numbers: Ranges
    size: int
    ended: int = 0

    def __iter__(self) -> Iterator[int]:
        return numbers_of(self.numbers)


@dataclasses.dataclass(frozen=True)
class Pilot:
    """A run that takes bundles of one campaign on one cluster.

    Attributes:
        run_id: its run; "" before that is known.
        state: "requested", "waiting", "running", "ending" or "ended".
        results_offset: the bytes of its results that are recorded.
        seconds: the time that it had for items from its start on; None for no limit, or before its start.
        workers: how many items it has in hand at a time.
        created, started_at, ended_at: seconds since 1970; None for not yet.
        cause, message: why it ended, where that was no ordinary end.
        succeeded: how many of its items have a value.
        failed: how many attempts failed on it, those that are followed by a retry included.
    """

    id: int
    run_id: str
    campaign: str
    cluster: str
    state: str
    results_offset: int
    workers: int
    created: float
    started_at: float | None
    ended_at: float | None
    cause: str
    message: str
    succeeded: int
    failed: int
    seconds: float | None = None


class ItemOutcome(NamedTuple):
    """The end of an item. (A frozen dataclass takes three times as long to make.)

    Attributes:
        state: `ItemState.SUCCEEDED`, `FAILED` or `CRASHED`.
        seconds: what its last attempt took.
        offset, length: the place of its frame in the campaign's outcome log.
        error: for one without a value, what went wrong, in a line.
        log: the number of the pilot's worker, and start and length of what the item printed in that worker's log.
    """

    number: int
    bundle: int
    state: ItemState
    seconds: float
    offset: int
    length: int
    error: str = ""
    log: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class ItemRetry:
    """A failed attempt after which the item waits again.

    Attributes:
        crashed: whether the worker died at it.
        interrupted: whether its pilot's time limit ended it, which is no attempt of the item's own.
        not_before: the time from which it may be leased, in seconds since 1970.
        seconds: what the attempt took.
        error: what went wrong, in a line.
        log: as for `ItemOutcome`.
    """

    number: int
    bundle: int
    crashed: bool
    not_before: float
    seconds: float = 0.0
    error: str = ""
    log: tuple[int, int, int] | None = None
    interrupted: bool = False


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a transaction of outcomes has changed.

    Attributes:
        new: how many items have ended by it.
        duplicates: how many outcomes and retries were those of items that had ended or waited already, or of items that
            are not in the bundle that was named. They have changed nothing.
        ended: whether all items of the campaign have ended.
    """

    new: int
    duplicates: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class ItemRow:
    """An item as it is shown.

    Attributes:
        state: "waiting", "leased", "succeeded", "failed", "crashed" or "cancelled".
        seconds: what its last attempt took; None for none.
        offset, length: the place of its outcome in the log; None for none.
        attempts, crashes: how many have ended, and how many of them by the death of a worker.
        not_before: when a waiting item may be tried again, in seconds since 1970; 0 for at once.
        pilot: the one that has it or had it last; None for none.
        error: what went wrong in its last attempt.
        log: where its output is: the pilot, the number of that pilot's worker, start and length; None for no output.
    """

    number: int
    state: str
    seconds: float | None = None
    offset: int | None = None
    length: int | None = None
    attempts: int = 0
    crashes: int = 0
    not_before: float = 0.0
    pilot: int | None = None
    error: str = ""
    log: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class GridEvent:
    """Something that a person may need to see or fix, with the count of its kind.

    Attributes:
        campaign, cluster: whose it is; "" for none or all.
        level: "info", "warning" or "error".
        code: its kind, such as "item_failed".
        group: what is the same in all that are counted together.
        first_at, last_at: seconds since 1970.
        open: whether nobody has closed it.
    """

    id: int
    campaign: str
    cluster: str
    level: str
    code: str
    group: str
    message: str
    count: int
    first_at: float
    last_at: float
    open: bool


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Numbers as ranges, in ascending order; a number that comes twice is there once."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][0] + ranges[-1][1]:
            ranges[-1][1] += 1
        else:
            ranges.append([number, 1])
    return tuple((first, count) for first, count in ranges)


def numbers_of(ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The numbers of ranges, one by one."""
    for first, count in ranges:
        yield from range(first, first + count)


def after_failure(
    attempts: int, crashes: int, crashed: bool, retries: int, *, now: float, crash_limit: int = CRASH_LIMIT
) -> float | None:
    """When an item may be tried again that has failed just now; None for never.

    Args:
        attempts, crashes: how many attempts had ended before, and how many of them by the death of a worker.
        crashed: whether a worker died at the item this time.
        retries: how often a failed item is tried again. Crashes have a limit of their own.
        now: seconds since 1970.
        crash_limit: how many workers may die at the item.
    """
    is_last = crashes + 1 >= crash_limit if crashed else attempts - crashes >= retries
    return None if is_last else now + PAUSES[min(attempts, len(PAUSES) - 1)]
