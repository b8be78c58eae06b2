"""Warm allocations, which wait on a cluster for a next call, and their cost."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from slurm_ray_flow.core.errors import ConnectionFailed
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.core.run import Event
from slurm_ray_flow.remote.shared.protocol import checked_event


@dataclasses.dataclass(frozen=True)
class Warm:
    """An allocation that is kept warm.

    Attributes:
        allocation: the id of the allocation: the id of the run (and try) that it was submitted for.
        allocated: its event `allocated`; None while it waits in a queue.
        idle: the event of the start of its idle time; None while it has a call, or before its first one.
        calls: the runs whose calls it has, or will take.
    """

    allocation: str
    allocated: Event | None
    idle: Event | None
    calls: tuple[str, ...]

    @classmethod
    def from_listed(cls, entry: Any) -> Warm:
        """Read an entry of the cluster's list.

        Raises:
            ConnectionFailed: the entry has another shape.
        """
        try:
            events = {name: checked_event(entry[name]) or None for name in ("allocated", "idle")}
            return read_record(cls, {**entry, **events, "calls": tuple(map(str, entry["calls"]))})
        except (KeyError, TypeError, ValueError) as error:
            advice = "see that nothing of ours was changed there"
            raise ConnectionFailed(f"it lists a warm Ray cluster of another shape: {error!r}", advice=advice) from error

    @property
    def run_id(self) -> str:
        """The run that the allocation was submitted for."""
        return self.allocation.partition(".")[0]

    @property
    def idles(self) -> bool:
        """Whether the allocation idles."""
        return self.idle is not None and not self.calls

    @property
    def cost(self) -> Cost:
        """The cost of its idle time until now."""
        idle = self.idle or {}
        since = float(idle.get("time") or time.time())
        return Cost.from_released(idle, more=max(0.0, time.time() - since))

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        idle, cost = self.idle or {}, self.cost
        return {
            "allocation": self.allocation,
            "idle_since": idle.get("time"),
            "keep_warm": idle.get("keep_warm"),
            "job_ends": idle.get("ends"),
            "core_hours_an_hour": cost.cpus,
            "gpu_hours_an_hour": cost.gpus,
            **cost.to_json(),
        }


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of idle time.

    Attributes:
        seconds: the idle time, between all calls.
        cpus, gpus: the resources that were allocated meanwhile.
    """

    seconds: float
    cpus: int
    gpus: int

    @classmethod
    def from_released(cls, released: Event, more: float = 0.0) -> Cost:
        """The cost in an event, with the cost of `more` seconds after it."""
        idled, cpus, gpus = (released.get(name) or 0 for name in ("idled", "cpus", "gpus"))
        return cls(float(idled) + more, int(cpus), int(gpus))

    @property
    def core_hours(self) -> float:
        return self.seconds * self.cpus / 3600

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.gpus / 3600

    @property
    def an_hour(self) -> str:
        """The cost of an hour, in words: "8 core-hours and 2 GPU-hours an hour"."""
        return f"{_counted(self.cpus, self.gpus)} an hour"

    @property
    def whole(self) -> str:
        """The whole cost, in words: "idled 3 min 20 s, 0.44 core-hours"."""
        return f"idled {format_duration(self.seconds)}, {_counted(self.core_hours, self.gpu_hours)}"

    def to_json(self) -> dict[str, float]:
        """For scripts."""
        return {
            "idled_seconds": round(self.seconds, 3),
            "core_hours": round(self.core_hours, 4),
            "gpu_hours": round(self.gpu_hours, 4),
        }


def _counted(cores: float, gpus: float) -> str:
    parts = [_number(cores, "core-hour")]
    if gpus:
        parts.append(_number(gpus, "GPU-hour"))
    return " and ".join(parts)


def _number(count: float, unit: str) -> str:
    text = f"{count:.2f}".rstrip("0").rstrip(".") if count < 10 else f"{count:.0f}"
    if text == "0" and count:
        text = "less than 0.01"
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"
