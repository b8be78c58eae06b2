"""When a cluster is closed to a campaign whose items fail there, and what a cluster gets that has shown nothing yet.

A failure of an item says little: the item may be bad. A cluster where most items fail that succeed elsewhere is what is
wrong. So a cluster is judged by its last outcomes beside those of the campaign's other clusters. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from enum import Enum

WINDOW = 20
"""The last outcomes that count."""
ENOUGH_ELSEWHERE = 3
"""So many outcomes of other clusters say how the campaign's items fare there."""


class Verdict(str, Enum):
    """What a cluster's last outcomes say."""

    OPEN = "open"
    CANARY = "canary"
    """It has not shown itself yet: it gets an item for each worker, and more after the first outcome; where there are
    other clusters, after the first value."""
    SUSPECT = "suspect"
    """Most items fail there, and nothing is known of other clusters: it gets nothing until they have told."""
    QUARANTINED = "quarantined"
    """Most items fail there, and not elsewhere."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The last outcomes of a campaign on a cluster.

    Attributes:
        failed: of each of them whether it was a failure, the newest last.
        values: how many values it has given at all.
    """

    failed: tuple[bool, ...] = ()
    values: int = 0

    def with_outcomes(self, failed: Collection[bool]) -> Window:
        """The window after more outcomes."""
        values = self.values + sum(not one for one in failed)
        return Window((*self.failed, *failed)[-WINDOW:], values)

    @property
    def fails_mostly(self) -> bool:
        """Whether more than half of a whole window are failures."""
        return 2 * sum(self.failed) > WINDOW


def verdict(here: Window, elsewhere: Collection[Window]) -> Verdict:
    """What the last outcomes of a cluster say of it.

    Args:
        here: those of the campaign on this cluster.
        elsewhere: those on its other clusters that are not closed to it.
    """
    if here.fails_mostly and elsewhere:
        told = [one for window in elsewhere for one in window.failed]
        if len(told) < ENOUGH_ELSEWHERE:
            return Verdict.SUSPECT
        if 2 * sum(told) <= len(told):
            return Verdict.QUARANTINED
    is_known = here.values or (here.failed and (not elsewhere or here.fails_mostly))
    return Verdict.OPEN if is_known else Verdict.CANARY
