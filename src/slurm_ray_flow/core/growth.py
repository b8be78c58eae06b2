"""How a run asks for more after it got too little: "double memory, at most 3 times"."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import brief_duration, brief_memory, parse_duration, parse_memory

Grown = Literal["memory", "time_limit"]

DEFAULT_TIMES = 3
_STEP = re.compile(r"(?:(double)|times\s+(\d+(?:\.\d+)?)|add\s+(\S+))(?:\s+(memory|time_limit))?", re.IGNORECASE)
_TIMES = re.compile(r"at\s+most\s+([1-9]\d*)\s+times?", re.IGNORECASE)
_MOST = re.compile(r"up\s+to\s+(\S+)", re.IGNORECASE)
_EXAMPLES = {
    "memory": '"double memory, at most 3 times", "add 8G, at most 2 times" or "times 1.5, up to 64G"',
    "time_limit": '"double time_limit, at most 2 times", "add 1h, at most 3 times" or "times 1.5, up to 12h"',
}


@dataclasses.dataclass(frozen=True)
class Growth:
    """A rule by which an option grows from try to try.

    Attributes:
        option: what grows.
        factor: what it is multiplied with.
        more: what is added to it then, in bytes or seconds.
        times: how often it grows at most.
        most: it never grows beyond this; None for no bound.
    """

    option: Grown
    factor: float = 1.0
    more: float = 0.0
    times: int = DEFAULT_TIMES
    most: float | None = None

    def after(self, value: float) -> float | None:
        """What to ask for after `value` was too little; None where the bound is reached."""
        grown = value * self.factor + self.more
        if self.most is not None:
            grown = min(grown, self.most)
        return grown if grown > value else None

    def written(self, value: float) -> str:
        """An amount of what grows, as one would write it as the option."""
        return brief_memory(value) if self.option == "memory" else brief_duration(value)


def parse_growth(text: object, name: str, option: Grown) -> Growth:
    """Read a rule.

    Args:
        text: "double", "times 1.5" or "add 8G", then the option's name or nothing, then ", at most N times" and
            ", up to 64G", each or none of them.
        name: the option that holds the rule, for errors.
        option: what it makes grow.

    Raises:
        OptionError: it is no such rule.
    """
    parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else [""]
    step = _STEP.fullmatch(parts[0])
    bounds = [found for part in parts[1:] for found in (_TIMES.fullmatch(part), _MOST.fullmatch(part)) if found]
    if step is None or (step[4] or option).lower() != option or len(bounds) < len(parts) - 1:
        raise _unclear(text, name, option)
    growth = _with_bounds(_stepwise(step, name, option), bounds, name)
    if growth.factor <= 1 and not growth.more:
        raise _unclear(text, name, option)
    return growth


def _stepwise(step: re.Match[str], name: str, option: Grown) -> Growth:
    double, factor, more = step[1], step[2], step[3]
    return Growth(option, 2.0 if double else float(factor or 1), _amount(more, name, option) if more else 0.0)


def _with_bounds(growth: Growth, bounds: list[re.Match[str]], name: str) -> Growth:
    for bound in bounds:
        if bound.re is _TIMES:
            growth = dataclasses.replace(growth, times=int(bound[1]))
        else:
            growth = dataclasses.replace(growth, most=_amount(bound[1], name, growth.option))
    return growth


def _amount(text: str, name: str, option: Grown) -> float:
    return parse_memory(text, name) if option == "memory" else parse_duration(text, name)


def _unclear(text: object, name: str, option: Grown) -> OptionError:
    return OptionError(f"{name}={text!r} is no rule by which {option} grows", advice=f"write {_EXAMPLES[option]}")
