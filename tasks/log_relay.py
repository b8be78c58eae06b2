"""The relay of a run's log: at once to the terminal, in large pieces to Prefect."""

from __future__ import annotations

import logging
import time
from pathlib import PurePosixPath

from prefect.logging import get_run_logger

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.progress import reporter

RECORD_BYTES, RECORD_SECONDS = 64 * 1024, 1.0
"""The size and age of a log record for Prefect: 100,000 lines take 58 s as a record each, 2 s as 100 records."""
PREFECT_BYTES = 16 * 1024 * 1024
"""The most bytes of a run's log that go to Prefect; the file on the cluster has all of it."""


class LogRelay:
    """A relay of one log file, piece by piece.

    Attributes:
        path: the file.
        offset: where its next piece begins.
    """

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self.path = cluster, path
        self.offset = self._kept = 0
        self._pending = bytearray()
        self._since = time.monotonic()
        self._logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = get_run_logger()

    def pass_on(self, data: bytes) -> None:
        """Pass on a new piece."""
        if data:
            self.offset += len(data)
            reporter().log(data)
            self._pending += data
        if len(self._pending) >= RECORD_BYTES or (self._pending and time.monotonic() - self._since > RECORD_SECONDS):
            self._send(last=False)

    def finish(self) -> None:
        """Pass on the rest."""
        while data := self._cluster.read(self.path, self.offset):
            self.pass_on(data)
        self._send(last=True)

    def _send(self, last: bool) -> None:
        self._since = time.monotonic()
        end = len(self._pending) if last else self._pending.rfind(b"\n") + 1
        whole, self._pending = self._pending[:end], self._pending[end:]
        while whole:
            cut = len(whole) if len(whole) <= RECORD_BYTES else whole.rfind(b"\n", 0, RECORD_BYTES) + 1 or RECORD_BYTES
            self._record(bytes(whole[:cut]))
            del whole[:cut]

    def _record(self, piece: bytes) -> None:
        before = self._kept
        self._kept += len(piece)
        if self._kept <= PREFECT_BYTES:
            self._logger.info("%s", piece.decode(errors="replace").rstrip("\n"))
        elif before <= PREFECT_BYTES:
            self._logger.warning("The rest of this log is in %s: more than 16 MiB are not shown here.", self.path)
