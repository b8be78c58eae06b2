"""The lines of a log that grows on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from slurm_ray_flow.blocks.cluster import Cluster


class LogLines:
    """Reads one log file, line by line.

    Attributes:
        path: the file.
    """

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self.path = cluster, path
        self._offset, self._rest = 0, b""

    def new(self) -> Iterator[str]:
        """The whole lines that have come since the last time."""
        while data := self._cluster.read(self.path, self._offset):
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)

    def last(self) -> Iterator[str]:
        """A last line without an end."""
        if self._rest:
            yield self._rest.decode(errors="replace")
