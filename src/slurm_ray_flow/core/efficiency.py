"""The report of the resources that a run used, compared with its request, and a better request for the next run."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from slurm_ray_flow.core.launch_events import ResourcesUsed
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.quantities import brief_duration, brief_memory, format_duration, format_memory
from slurm_ray_flow.remote.shared.protocol import is_amount

SHORTEST = 10.0
"""Seconds that a run must take to be reported: a shorter one is not typical."""
RESERVE = 1.25
"""The factor from the used to the recommended amount, since no two runs are the same."""
LEAST_MEMORY = 256 * 1024**2
LEAST_TIME = 600.0


@dataclasses.dataclass(frozen=True)
class ResourceUse:
    """The use of resources from the event `call_ended`. Memory is that of one node, all else the sum over the nodes.

    Attributes:
        wall: seconds that the call took.
        gpu_seconds: seconds that GPUs were busy, added up; None where nobody knows.
        nodes: how many hosts were looked at.
    """

    wall: float
    cpu_seconds: float
    cpus: float
    memory_peak: float
    gpu_seconds: float | None = None
    nodes: int = 1

    @classmethod
    def from_event(cls, usage: object) -> ResourceUse | None:
        """Read the event's field; None where a cluster sent another form."""
        if not isinstance(usage, dict):
            return None
        nodes = usage.get("nodes")
        given = {name: usage[name] for name in _NUMBERS if usage.get(name) is not None}
        if not all(is_amount(value) for value in given.values()) or not given.keys() >= _NEEDED:
            return None
        return cls(**given, nodes=max(1, len(nodes)) if isinstance(nodes, list) else 1)


_NUMBERS = [field.name for field in dataclasses.fields(ResourceUse) if field.name != "nodes"]
_NEEDED = {"wall", "cpu_seconds", "cpus", "memory_peak"}


class _Row(NamedTuple):
    """One resource: the used amount, the requested one, their ratio, and the recommended one where it differs."""

    what: str
    used: str
    asked: str
    share: str
    advice: str = ""


def killed_text(usage: object) -> str:
    """The warning for a successful call some of whose processes the kernel has killed; "" for none."""
    count = usage.get("own_kills") if isinstance(usage, dict) else None
    if not isinstance(count, int) or count < 1:
        return ""
    whom = "a process" if count == 1 else f"{count} processes"
    return (
        f"the kernel ended {whom} of the call for want of memory: see whether the value lacks something; ask for more"
    )


def resources_used(usage: object, options: Options) -> ResourcesUsed | None:
    """The report of a run's use; None for a run that was short or asked for nothing."""
    used = ResourceUse.from_event(usage)
    if used is None or used.wall < SHORTEST:
        return None
    rows = [row for row in (_cpus(used, options), _memory(used, options), _gpus(used, options)) if row]
    time = _time(used, options)
    if not rows and not (time and time.advice):
        return None
    rows += [time] if time else []
    each = f"each of {used.nodes} nodes used " if used.nodes > 1 else "used "
    advice = ", ".join(row.advice for row in rows if row.advice)
    line = each + ", ".join(f"{row.used} of {row.asked} ({row.share})" for row in rows)
    head = ("| | used | asked for | share | next time |", "|---|---|---|---|---|")
    table = "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])
    return ResourcesUsed(line + (f"; next time: {advice}" if advice else ""), table)


def _cpus(used: ResourceUse, options: Options) -> _Row | None:
    asked = options.cpus_per_node
    if not asked:
        return None
    busy = used.cpu_seconds / used.wall / used.nodes
    wanted = max(1, math.ceil(busy * RESERVE))
    advice = f"cpus_per_node={wanted}" if wanted < asked and busy < asked / 2 else ""
    return _Row("processors", f"{busy:.1f}", f"{asked} CPU{'s' if asked > 1 else ''}", f"{busy / asked:.0%}", advice)


def _memory(used: ResourceUse, options: Options) -> _Row | None:
    asked = options.memory
    if not asked:
        return None
    wanted = recommended_memory(used.memory_peak)
    much_less, nearly_all = wanted <= asked * 0.75, used.memory_peak > asked * 0.9
    advice = f"memory='{brief_memory(wanted)}'" if much_less or (nearly_all and wanted > asked) else ""
    share = f"{used.memory_peak / asked:.0%}"
    return _Row("memory", format_memory(used.memory_peak), format_memory(asked), share, advice)


def _gpus(used: ResourceUse, options: Options) -> _Row | None:
    if not options.gpus_per_node or used.gpu_seconds is None:
        return None
    count = options.gpus_per_node
    busy = used.gpu_seconds / used.wall / used.nodes
    return _Row("GPUs", f"{busy:.1f}", f"{count} GPU{'s' if count > 1 else ''}", f"{busy / count:.0%}")


def _time(used: ResourceUse, options: Options) -> _Row | None:
    asked = options.time_limit
    if not asked:
        return None
    wanted = recommended_time(used.wall)
    advice = f"time_limit='{brief_duration(wanted)}'" if wanted <= asked / 2 else ""
    return _Row("time", format_duration(used.wall), format_duration(asked), f"{used.wall / asked:.0%}", advice)


def recommended_memory(peak: float) -> int:
    """The memory to request after `peak` bytes were used: a quarter more, as a round number."""
    wanted = max(peak * RESERVE, LEAST_MEMORY)
    power = 2 ** math.floor(math.log2(wanted))
    return int(next(power * step for step in (1, 1.25, 1.5, 2) if power * step >= wanted))


def recommended_time(seconds: float) -> float:
    """The time to request after a run took `seconds`: half as much again, and ten minutes at least."""
    wanted = max(seconds * 1.5, LEAST_TIME)
    unit = 600.0 if wanted <= 3600 else 1800.0 if wanted <= 6 * 3600 else 3600.0
    return math.ceil(wanted / unit) * unit
