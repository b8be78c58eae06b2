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
        since: when it took the lock or joined the queue, in seconds since 1970.
        name: the function's name; "" for a foreign program.
        run: the run's id.
        server: the key of the Prefect limit by which the run has its slot; "" for none.
        foreign: a program that is not slurm-ray-flow's; it takes the whole server.
        slots: the number of slots that it takes.
        idle: a warm cluster without a call, which gives its slot to whoever waits on the server.
        pid: its process on the server; None where that is not known.
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
            slots=_at_least(1, fields.get("slots")),
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
    def from_json(cls, answer: dict[str, Any]) -> LockQueue:
        """Read the answer of `queue.state`; entries of another form are left out."""
        slots, free = _at_least(1, answer.get("slots")), _at_least(0, answer.get("free"))
        return cls(_users(answer.get("holders")), _users(answer.get("waiting")), slots, free)


def _users(entries: object) -> tuple[LockUser, ...]:
    users = entries if isinstance(entries, list) else []
    return tuple(LockUser.from_json(fields) for fields in users if isinstance(fields, dict))


def _at_least(minimum: int, number: object) -> int:
    return max(number, minimum) if isinstance(number, int) else minimum


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
    """The number of slots that are held by others than runs of the Prefect limit with this key.

    Idle holders do not count: they give their slots to runs that wait on the server.
    """
    others = [holder for holder in queue.holders if holder.foreign or (holder.server != key and not holder.idle)]
    return min(slots, sum(slots if holder.foreign else holder.slots for holder in others))


def slots_to_hold(others: int, *, active: int, held: int, slots: int) -> int:
    """The number of slots of the limit that the mirror should hold for others.

    A launch of this Prefect never loses its slot to the mirror, also while it still waits for the lock on the server.

    Args:
        others: the number of slots that others hold on the server.
        active: the number of slots of the limit that are taken now.
        held: the number of slots among them that the mirror holds already.
        slots: the number of all slots.
    """
    return max(0, min(others, slots - (active - held)))


def place_in_line(waiting: Sequence[str], run_id: str) -> int | None:
    """The number of launches before this one; None where it is not in the queue."""
    return list(waiting).index(run_id) if run_id in waiting else None


def waiting_text(label: str, queue: LockQueue | None, launches_ahead: int, now: float) -> str:
    """The text of a launch that waits: the holders of the server, since when, and how many launches come first.

    Args:
        label: the server.
        queue: the server's lock; None where the server does not answer.
        launches_ahead: the number of launches of the same Prefect that come first.
        now: seconds since 1970.
    """
    if queue is None:
        return f"waiting for {label}: it does not answer, {launches_ahead} ahead"
    total_ahead = launches_ahead + len(queue.waiting)
    return f"waiting for {label}: {_held_by(queue.holders, now)}, {total_ahead} ahead"


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
    others = len(holders) - 1
    return text + (f" and {others} more" if others else "")


def clock(when: float | None, now: float | None = None) -> str:
    """A time for people: hours and minutes, with the date where it was not today."""
    if not when:
        return "an unknown time"
    now = time.time() if now is None else now
    then, today = (datetime.datetime.fromtimestamp(seconds).astimezone() for seconds in (when, now))
    return then.strftime("%H:%M" if then.date() == today.date() else "%Y-%m-%d %H:%M")


def queue_rows(queue: LockQueue, now: float) -> list[dict[str, str]]:
    """The queue as a table: holders first, then those who wait, in order."""
    positions = ["holds it, idle" if holder.idle else "holds it" for holder in queue.holders]
    positions += [f"{number} ahead" for number in range(len(queue.waiting))]
    return [
        {
            "place": position,
            "user": member.user,
            "since": clock(member.since, now),
            "run": "not one of ours" if member.foreign else member.run[:8],
            "function": member.name,
        }
        for position, member in zip(positions, queue.holders + queue.waiting, strict=True)
    ]
