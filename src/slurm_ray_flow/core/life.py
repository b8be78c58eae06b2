"""What a cluster knows of a run's head besides what the head has written itself."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Life:
    """Whether more can come from a head.

    Attributes:
        alive: it lives, or is still to come: it waits in a scheduler's queue.
        waiting: what it waits for, in words for people; "" where it has begun, and where nobody knows.
        cause: why it is gone, one of the words of `CAUSES`, where the cluster can tell.
        message: what the cluster says of that.
    """

    alive: bool
    waiting: str = ""
    cause: str = ""
    message: str = ""


ALIVE, GONE = Life(alive=True), Life(alive=False)
