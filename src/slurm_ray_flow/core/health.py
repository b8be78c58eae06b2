"""What is remembered of a cluster between two looks at it, and what is news. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from slurm_ray_flow.core.events import Notice, cluster_down, cluster_up, warm_idle
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.core.warm import Warm

AGAIN_SECONDS = 3600.0
"""A cluster that let us not in is not asked again for so long: sites block accounts for that."""


@dataclasses.dataclass(frozen=True)
class Health:
    """How a cluster was at the last look.

    Attributes:
        why: it could not be used; "" where it could.
        since: when that began, in seconds since 1970.
        again: it is not asked before.
        told: the idle times of Ray clusters that were told of already.
    """

    why: str = ""
    since: float = 0.0
    again: float = 0.0
    told: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, said: Any) -> Health:
        """Read it; what is not of its form, or nothing, is a cluster that nobody has looked at."""
        try:
            return read_record(cls, {**said, "told": tuple(map(str, said["told"]))})
        except (KeyError, TypeError, ValueError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "told": list(self.told)}


def looked(
    before: Health,
    why: str,
    advice: str,
    refused: bool,
    idle: Sequence[Warm],
    idle_seconds: float,
    cluster: str,
    now: float,
) -> tuple[Health, list[Notice]]:
    """What is remembered after a look, and the events that tell what is new.

    Args:
        before: what was remembered.
        why: the cluster can't be used; "" where it can.
        advice: what to try then.
        refused: it answered, and let us not in.
        idle: what idles there.
        idle_seconds: for how long it has to, to be told of.
        cluster: its name.
        now: seconds since 1970.
    """
    since = before.since if before.since and bool(before.why) == bool(why) else now
    if why:
        news = [] if before.why else [cluster_down(cluster, why, advice)]
        return Health(why, since, now + AGAIN_SECONDS if refused else 0.0, before.told), news
    long = {_name(one): one for one in idle if now - _since(one) >= idle_seconds}
    news = [cluster_up(cluster, now - before.since)] if before.why else []
    news += [warm_idle(one, cluster) for name, one in long.items() if name not in before.told]
    return Health("", since, 0.0, tuple(long)), news


def _name(one: Warm) -> str:
    """One time of idling: after its next call it is another one."""
    return f"{one.allocation}@{_since(one)}"


def _since(one: Warm) -> float:
    return float((one.idle or {}).get("time", 0.0))
