"""What earlier runs left, and which of it goes. Nothing here looks at the world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

KEPT_SECONDS = 30 * 86400.0
"""So long a thing stays that nobody uses."""


@dataclass(frozen=True)
class Left:
    """Files and folders that stay and go together.

    Attributes:
        paths: all of them.
        used: when somebody used them last, in seconds since 1970.
        alive: whether something that runs now needs them; None where nothing ever will again.
    """

    paths: tuple[Path, ...]
    used: float
    alive: bool | None = False


def expired(left: Iterable[Left], now: float) -> Iterator[Left]:
    """What goes: what nothing that runs needs, and nobody has used for 30 days."""
    for one in left:
        if one.alive is None or (not one.alive and now - one.used > KEPT_SECONDS):
            yield one
