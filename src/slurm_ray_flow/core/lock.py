"""The lock of a server that several people share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lock:
    """What a run needs to know of it.

    Attributes:
        path: the file whose lock is exclusive use of the server.
        slots: how many of our runs may share the server.
        gpus: how many GPUs it has for us; None for all there are.
    """

    path: str
    slots: int = 1
    gpus: int | None = None
