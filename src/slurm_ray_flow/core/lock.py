"""The lock of a server that several people share: its holders, its queue, and its mirror in Prefect."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slurm_ray_flow.remote.shared.protocol import is_moment


@dataclass(frozen=True)
class Lock:
    """The settings of a lock.

    Attributes:
        path: the file whose lock is exclusive use of the server.
        slots: how many of our runs may share the server.
        gpus: how many GPUs it has for us; None for all there are.
    """

    path: str
    slots: int = 1
    gpus: int | None = None


FORBIDDEN = str.maketrans(dict.fromkeys("/%&<>", "-"))
"""Characters that Prefect refuses in names."""

LONGEST = 100
"""The most letters that are shown of a text from another user."""


@dataclass(frozen=True)
class LockUser:
    """One holder of a lock, or one member of its queue, as the operation `queue.state` describes it.

    Attributes:
        user: the account.
        since: when it began, in seconds since 1970.
        name: of the function; "" where a foreign program gives none.
        run: the run's id.
        server: which Prefect's limit the run came through; "" for none.
        foreign: it is no program of ours, and has the server to itself.
        slots: how many it takes.
        idle: it is warm, does nothing, and gives way to whoever waits on the server.
        pid: its process there, where that is known.
    """

    user: str = "somebody"
    since: float | None = None
    name: str = ""
    run: str = ""
    server: str = ""
    foreign: bool = False
    slots: int = 1
    idle: bool = False
    pid: int | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> LockUser:
        since, pid = fields.get("since"), fields.get("pid")
        texts = {key: _harmless(fields[key]) for key in ("user", "name", "run", "server") if fields.get(key)}
        return cls(
            **texts,
            since=float(since) if since is not None and is_moment(since) else None,
            foreign=bool(fields.get("foreign")),
            idle=bool(fields.get("idle")),
            slots=_counted(fields.get("slots"), 1),
            pid=pid if isinstance(pid, int) else None,
        )


@dataclass(frozen=True)
class LockQueue:
    """The holders and the queue of one server, in order, and its slots: all, and those that are free."""

    holders: tuple[LockUser, ...] = ()
    waiting: tuple[LockUser, ...] = ()
    slots: int = 1
    free: int = 0

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> LockQueue:
        """Read the answer of `queue.state`; entries of another form are left out."""
        slots, free = _counted(said.get("slots"), 1), _counted(said.get("free"), 0)
        return cls(_users(said.get("holders")), _users(said.get("waiting")), slots, free)


def _users(said: object) -> tuple[LockUser, ...]:
    return tuple(LockUser.from_json(one) for one in said if isinstance(one, dict)) if isinstance(said, list) else ()


def _counted(number: object, least: int) -> int:
    return max(number, least) if isinstance(number, int) else least


def _harmless(text: object) -> str:
    """A text from another user, shortened and without control characters."""
    return "".join(letter for letter in str(text) if letter.isprintable())[:LONGEST]


def limit_name(label: str) -> str:
    """The name of the concurrency limit of a server in Prefect."""
    return f"srf-{label.translate(FORBIDDEN)}"


def waiting_state(label: str) -> str:
    """The state name of a flow run that waits for its slot in Prefect; other launches find it by that name."""
    return f"Waiting for {label}"


def queued_state(label: str) -> str:
    """The state name of a flow run that has its slot and waits for the lock on the server."""
    return f"Queued on {label}"


def taken_by_others(queue: LockQueue, key: str, slots: int) -> int:
    """The number of slots whose holders did not come through the limit that has this key.

    Idle holders do not count: they give way to runs that wait on the server itself, and to none in Prefect.
    """
    others = [holder for holder in queue.holders if holder.foreign or (holder.server != key and not holder.idle)]
    return min(slots, sum(slots if holder.foreign else holder.slots for holder in others))


def to_hold(others: int, *, active: int, held: int, slots: int) -> int:
    """The number of slots of the limit that the mirror should hold for others.

    Our own launches are never pushed out: one that has its slot and waits for the lock behind somebody else keeps it.

    Args:
        others: slots that others hold on the server.
        active: slots of the limit that are taken now.
        held: those among them that the mirror holds already.
        slots: all of them.
    """
    return max(0, min(others, slots - (active - held)))


def place_in_line(waiting: Sequence[str], run_id: str) -> int | None:
    """The number of launches before this one; None where it is not in the queue."""
    return list(waiting).index(run_id) if run_id in waiting else None


def waiting_text(label: str, queue: LockQueue | None, before: int, now: float) -> str:
    """The text of a launch that waits: the holders of the server, since when, and how many launches come first.

    Args:
        label: the server.
        queue: what the server says; None where it does not answer.
        before: launches of the same Prefect that come first.
        now: seconds since 1970.
    """
    if queue is None:
        return f"waiting for {label}: it does not answer, {before} ahead"
    ahead = before + len(queue.waiting)
    return f"waiting for {label}: {_held_by(queue.holders, now)}, {ahead} ahead"


def queued_text(label: str, waiting: dict[str, Any], now: float) -> str:
    """The text of a run that waits for the lock, from a head's event `waiting`."""
    holder = waiting.get("holder")
    holders = (LockUser.from_json(holder),) if isinstance(holder, dict) else ()
    return f"waiting for {label}: {_held_by(holders, now)}, {waiting.get('ahead') or 0} ahead"


def _held_by(holders: Sequence[LockUser], now: float) -> str:
    if not holders:
        return "about to be free"
    first = holders[0]
    text = f"held by {first.user}" + (f" since {clock(first.since, now)}" if first.since is not None else "")
    more = len(holders) - 1
    return text + (f" and {more} more" if more else "")


def clock(when: float | None, now: float | None = None) -> str:
    """A time for people: hours and minutes, with the date where it was not today."""
    if not when:
        return "an unknown time"
    now = time.time() if now is None else now
    then, today = (datetime.datetime.fromtimestamp(seconds).astimezone() for seconds in (when, now))
    return then.strftime("%H:%M" if then.date() == today.date() else "%Y-%m-%d %H:%M")


def queue_rows(queue: LockQueue, now: float) -> list[dict[str, str]]:
    """The queue as a table: holders first, then those who wait, in order."""
    places = ["holds it, idle" if holder.idle else "holds it" for holder in queue.holders]
    places += [f"{number} ahead" for number in range(len(queue.waiting))]
    return [
        {
            "place": place,
            "user": party.user,
            "since": clock(party.since, now),
            "run": "not one of ours" if party.foreign else party.run[:8],
            "function": party.name,
        }
        for place, party in zip(places, queue.holders + queue.waiting, strict=True)
    ]
