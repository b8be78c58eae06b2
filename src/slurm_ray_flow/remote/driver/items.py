"""The call's side of an item stream: bundles of items arrive while it runs, and results leave one by one."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from typing import Iterator, List, NamedTuple, Optional

from slurm_ray_flow.remote.shared import files
from slurm_ray_flow.remote.shared.items import BUNDLE, CLOSED, RESULTS, VALUES, WITHDRAWN, Item, unpack_bundle
from slurm_ray_flow.remote.shared.protocol import TAKEN

IDLE_SECONDS = 120.0
FLUSH_SECONDS = 0.5
FLUSH_BYTES = 16 << 20
"""So many bytes of values are held in memory at most, besides the last one's."""


class Bundle(NamedTuple):
    """Items that home has handed over together, and that this call answers for."""

    number: int
    items: List[Item]


class ItemSource:
    """The bundles that home places for a call, each once, in the order of their numbers as far as they are there.

    Iterating waits for the next bundle. It ends when home has closed the stream and no bundle is left, or when none
    came for some time; home can withdraw what it places after that.

        sink = ItemSink(folder)
        for bundle in ItemSource(folder):
            for item, data in bundle.items:
                sink.add(bundle.number, item, VALUE, seconds, work(data))
            sink.flush()

    Args:
        folder: the folder `items` of the run. It may come later.
        idle_seconds: how long to wait for a bundle.
    """

    def __init__(self, folder: str, idle_seconds: float = IDLE_SECONDS) -> None:
        self._folder, self._idle_seconds = folder, idle_seconds

    def __iter__(self) -> Iterator[Bundle]:
        while True:
            bundle = self._next()
            if bundle is None:
                return
            yield bundle

    def _next(self) -> Optional[Bundle]:
        began, pause = time.monotonic(), files.SHORTEST_PAUSE
        while True:
            closed = self.closed  # looked at before the bundles: those placed before it are seen then
            bundle = self.take()
            if bundle is not None or closed or time.monotonic() - began >= self._idle_seconds:
                return bundle
            time.sleep(pause)
            pause = min(pause * 1.3, files.LONGEST_PAUSE)

    @property
    def closed(self) -> bool:
        """Whether home will place no more bundles."""
        return os.path.exists(os.path.join(self._folder, CLOSED))

    def take(self) -> Optional[Bundle]:
        """Take a bundle, which home can't withdraw any more; None where none waits.

        Raises:
            ValueError: its file is damaged.
        """
        for name in files.names(self._folder):
            path = os.path.join(self._folder, name)
            if name.endswith(BUNDLE) and self._is_ours(path):
                with open(path + TAKEN, "rb") as file:
                    return Bundle(int(name[: -len(BUNDLE)]), unpack_bundle(file.read()))
        return None

    @staticmethod
    def _is_ours(path: str) -> bool:
        if os.path.exists(path + TAKEN) or os.path.exists(path + WITHDRAWN):
            with contextlib.suppress(FileNotFoundError):  # placed again, since the answer to the first time was lost
                os.unlink(path)
            return False
        try:
            os.rename(path, path + TAKEN)
        except FileNotFoundError:
            return False
        return True


class ItemSink:
    """Writes the results of a call's items. A run has one.

    What home can read is on the disk: results are held back until their bytes are there. That happens at most each half
    second, in `add`; call `flush` at the end of a bundle, and within half a second where the next result is not near.

    Args:
        folder: the folder `items` of the run. It is made if home has placed nothing yet.

    Raises:
        FileExistsError: the run has one already.
        OperationError: the folder can't be made.
    """

    def __init__(self, folder: str) -> None:
        files.private_folder(folder)
        self._values, self._results = (_Appended(os.path.join(folder, name)) for name in (VALUES, RESULTS))
        self._flushed = time.monotonic()

    def add(self, bundle: int, item: int, kind: str, seconds: float, data: bytes) -> None:
        """Add the result of an item.

        Args:
            bundle: the number of the bundle that the item came with.
            item: its number.
            kind: `VALUE` or `ERROR`.
            seconds: how long it took.
            data: what home gets.

        Raises:
            OSError: it can't be written. It is held, and written by the next flush that can.
        """
        line = {
            "item": item, "bundle": bundle, "kind": kind, "seconds": round(seconds, 6),
            "offset": self._values.size, "length": len(data), "crc32": zlib.crc32(data),
        }  # fmt: skip
        self._values.add(data)
        self._results.add(json.dumps(line).encode() + b"\n")
        if time.monotonic() - self._flushed >= FLUSH_SECONDS or self._values.held >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Have all results on the disk, and home see them.

        Raises:
            OSError: they can't be written.
        """
        self._values.flush()
        self._results.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush, and close the files."""
        self.flush()
        self._values.close()
        self._results.close()


class _Appended:
    """A new file that grows at its end. No process that the call forks can write what is held here, or move the end."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._pieces: List[bytes] = []
        self._written, self.held = 0, 0

    @property
    def size(self) -> int:
        """Its size in bytes, with what is held."""
        return self._written + self.held

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.held += len(data)

    def flush(self) -> None:
        """Have all on the disk; may be repeated after an error."""
        if not self._pieces:
            return
        left, offset = memoryview(b"".join(self._pieces)), self._written
        while left:
            count = os.pwrite(self._descriptor, left, offset)
            left, offset = left[count:], offset + count
        os.fsync(self._descriptor)
        self._pieces, self._written, self.held = [], offset, 0

    def close(self) -> None:
        os.close(self._descriptor)
