"""Memory and time as people write them."""

from __future__ import annotations

import datetime
import math
import re
from datetime import timedelta

from slurm_ray_flow.core.errors import OptionError

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(I?B?)", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_UNITS = "weeks?|w|days?|d|hours?|h|minutes?|mins?|m|seconds?|secs?|s"
_PARTS = re.compile(rf"(\d+(?:\.\d+)?)\s*({_UNITS})\s*", re.IGNORECASE)
_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")


def parse_memory(value: object, option: str = "memory") -> int:
    """Read an amount of memory.

    Args:
        value: bytes as a whole number, or text such as "64G", "512 MiB", "100B". Units are powers of 1024, as in
            Slurm's `--mem`; a text without a unit is refused, since it means megabytes to Slurm.

    Returns:
        Bytes.

    Raises:
        OptionError: it is not an amount of memory, or not above zero.
    """
    _refuse_bare_number(value, option, "bytes", "GM")
    if isinstance(value, int) and not isinstance(value, bool):
        amount = value
    elif isinstance(value, str) and (match := _MEMORY.fullmatch(value.strip())):
        amount = int(float(match[1]) * 1024 ** _POWERS[match[2].upper()])
    else:
        raise OptionError(
            f"{option}={value!r} is not an amount of memory", advice='write "64G", "512M" or a number of bytes'
        )
    if amount <= 0:
        raise OptionError(f"{option}={value!r} must be above zero", advice='write "64G", "512M" or a number of bytes')
    return amount


def parse_duration(value: object, option: str = "time_limit") -> float:
    """Read a length of time.

    Args:
        value: seconds as a number, a timedelta, text such as "2h30m", "90 min", "1d", or Slurm's own
            "MM:SS", "HH:MM:SS", "D-HH", "D-HH:MM", "D-HH:MM:SS" (sbatch(1), --time). Slurm's "MM" is refused, since
            the same number without quotes is in seconds.

    Returns:
        Seconds.

    Raises:
        OptionError: it is not a length of time, or not above zero.
    """
    _refuse_bare_number(value, option, "seconds", "ms")
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds < float("inf"):
        raise OptionError(
            f"{option}={value!r} is not a length of time",
            advice='write "2h30m", "90m", "1-12:00:00", seconds as a number, or a timedelta',
        )
    return seconds


def _refuse_bare_number(value: object, option: str, unit: str, letters: str) -> None:
    """Refuse a text without a unit, which has another meaning for Slurm than the number has in Python."""
    if isinstance(value, str) and value.strip().isdecimal() and int(value) > 0:
        first, second = (f'"{int(value)}{letter}"' for letter in letters)
        raise OptionError(
            f"{option}={value!r} has no unit", advice=f"write {first} or {second}; a number without quotes is in {unit}"
        )


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    parts = list(_PARTS.finditer(text))
    if parts and "".join(part[0] for part in parts) == text:
        return sum(float(part[1]) * _SECONDS[part[2][0].lower()] for part in parts)
    clock = _CLOCK.fullmatch(text)
    return _clock_seconds(clock) if clock else None


def _clock_seconds(clock: re.Match[str]) -> float:
    days, first, second, third = (int(part) if part else None for part in clock.groups())
    numbers = [number for number in (first, second, third) if number is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return (days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def format_memory(amount: float) -> str:
    """Write bytes for people: 1536 is "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Write seconds for people: 0.42 is "0.4 s", 5400 is "1 h 30 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def brief_memory(amount: float) -> str:
    """Write bytes in the form of `memory=`: "200M", "1.5G", rounded up."""
    for unit, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        if amount >= 1024**power:
            tenths = math.ceil(amount * 10 / 1024**power)
            return f"{tenths / 10:g}{unit}"
    return f"{math.ceil(amount)}B"


def brief_duration(seconds: float) -> str:
    """Write seconds in the form of `time_limit=`: "45s", "1h30m", "2d", rounded up."""
    remaining = math.ceil(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, remaining = divmod(remaining, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_start(start: float, now: float) -> str:
    """A future moment by the clock, with the rough time until then: "at 14:05 (in about 10 min)"."""
    then, today = (datetime.datetime.fromtimestamp(moment).astimezone() for moment in (start, now))
    clock = f"{then:%H:%M}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"
    return f"at {clock} ({_rough_duration(start - now)})"


def _rough_duration(seconds: float) -> str:
    """A rough time, so that a line that is printed at each change is not printed each minute."""
    if seconds < 150:
        return "in a moment"
    if seconds < 3600:
        return f"in about {5 * max(1, round(seconds / 300))} min"
    hours = round(seconds / 3600)
    return f"in about {hours} h" if hours < 36 else f"in about {round(seconds / 86400)} days"
