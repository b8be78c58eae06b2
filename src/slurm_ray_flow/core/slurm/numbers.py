"""Times, amounts and counts as Slurm's columns write them."""

from __future__ import annotations

import re

_TIME = re.compile(r"(?:(\d{1,12})-)?(?:(\d{1,12}):)?(\d{1,12}):(\d{1,12})(\.\d+)?")
_AMOUNT = re.compile(r"(\d{1,20}(?:\.\d+)?)([KMGTP]?)[nc]?", re.IGNORECASE)
_POWERS = {"": 2, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NOTHING = {"", "N/A", "NONE", "(NULL)", "UNKNOWN", "NOT_SET", "INVALID", "NOTSET"}
_NO_MOMENT = 4_294_967_294  # Slurm's NO_VAL, and above it INFINITE
NO_LIMIT = float("inf")


def is_nothing(text: str) -> bool:
    """Whether a column says that it has nothing to say."""
    return text.strip().upper() in _NOTHING


def text_of(text: str) -> str:
    """The column's text, "" where it has none."""
    return "" if is_nothing(text) else text.strip()


def duration(text: str) -> float | None:
    """Seconds of "1-02:03:04", "02:03:04", "3:04.5", or a bare number of minutes; no limit is infinite."""
    text = text.strip().upper()
    if text in {"UNLIMITED", "INFINITE"}:
        return NO_LIMIT
    if text.isdecimal() and len(text) <= 12:
        return float(text) * 60
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    if days and match[2] is None:  # "1-12:30" has no seconds
        hours, minutes, seconds = minutes, seconds, 0
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + float(match[5] or 0)


def moment(text: str) -> float | None:
    """Seconds since 1970, as all our commands ask for them; None for any other text: its time zone is not known."""
    text = text.strip()
    return float(text) if text.isdecimal() and 0 < float(text) < _NO_MOMENT else None


def memory(text: str) -> int | None:
    """Bytes of "3900", "3900M", "4Gn", "1.50T": a number alone is MiB."""
    match = _AMOUNT.fullmatch(text.strip())
    return int(float(match[1]) * 1024 ** _POWERS[match[2].upper()]) if match else None


def count(text: str) -> int | None:
    """A whole number; "4+" is 4 (sinfo writes so of nodes that differ), "1.2K" is 1228 (squeue, of many nodes)."""
    match = re.fullmatch(r"(\d{1,20}(?:\.\d+)?)([KM]?)\+?", text.strip())
    return int(float(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]]) if match else None


def limit(text: str) -> float | None:
    """A count that may be no limit at all, which is infinite."""
    return NO_LIMIT if text.strip().upper() in {"UNLIMITED", "INFINITE"} else count(text)
