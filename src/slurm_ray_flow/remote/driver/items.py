"""The call's side of an item stream: it takes bundles of items while it runs, and writes results one by one."""

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
"""The most bytes of values that are held in memory, besides the last value's."""


class Bundle(NamedTuple):
    """Items that home has placed together, and whose results this call owes."""

    number: int
    items: List[Item]


class ItemSource:
    """The bundles that home places for a call, each once, in the order of their numbers among those that are placed.

    An iteration waits for the next bundle. It ends when home has closed the stream and no bundle is left, or after some
    time without a bundle; home can withdraw the bundles that it places later.

        sink = ItemSink(folder)
        for bundle in ItemSource(folder):
            for item, data in bundle.items:
                sink.add(bundle.number, item, VALUE, seconds, work(data))
            sink.flush()

    Args:
        folder: the folder `items` of the run, which may not exist yet.
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
        for _ in files.polls(self._idle_seconds):
            closed = self.closed  # read before the bundles, so that no bundle placed before the end is missed
            bundle = self.take()
            if bundle is not None or closed:
                return bundle
        return None

    @property
    def closed(self) -> bool:
        """Whether home will place no more bundles."""
        return os.path.exists(os.path.join(self._folder, CLOSED))

    def take(self) -> Optional[Bundle]:
        """Take a bundle, which home then can't withdraw any more; None if none waits.

        Raises:
            ValueError: the bundle's file is damaged.
        """
        for name in files.names(self._folder):
            path = os.path.join(self._folder, name)
            if name.endswith(BUNDLE) and self._take_file(path):
                with open(path + TAKEN, "rb") as file:
                    return Bundle(int(name[: -len(BUNDLE)]), unpack_bundle(file.read()))
        return None

    @staticmethod
    def _take_file(path: str) -> bool:
        if os.path.exists(path + TAKEN) or os.path.exists(path + WITHDRAWN):
            with contextlib.suppress(FileNotFoundError):  # home placed it twice, because the first answer was lost
                os.unlink(path)
            return False
        try:
            os.rename(path, path + TAKEN)
        except FileNotFoundError:
            return False
        return True


class ItemSink:
    """Writes the results of a call's items. A run has one.

    Home sees a result when the bytes of its value are on the disk. `add` writes to the disk at most each half second.
    Call `flush` at the end of a bundle, and within half a second if the next result takes longer.

    Args:
        folder: the folder `items` of the run. It is made if home has placed no bundle yet.

    Raises:
        FileExistsError: the run has a sink already.
        OperationError: the folder can't be made.
    """

    def __init__(self, folder: str) -> None:
        files.private_folder(folder)
        self._values, self._results = (_GrowingFile(os.path.join(folder, name)) for name in (VALUES, RESULTS))
        self._last_flush = time.monotonic()

    def add(self, bundle: int, item: int, kind: str, seconds: float, data: bytes) -> None:
        """Add the result of an item.

        Args:
            bundle: the number of the bundle that the item came with.
            item: the item's number.
            kind: `VALUE` or `ERROR`.
            seconds: the time that the item took.
            data: the result's bytes for home.

        Raises:
            OSError: the result can't be written. It is held in memory for the next flush.
        """
        line = {
            "item": item, "bundle": bundle, "kind": kind, "seconds": round(seconds, 6),
            "offset": self._values.size, "length": len(data), "crc32": zlib.crc32(data),
        }  # fmt: skip
        self._values.add(data)
        self._results.add(json.dumps(line).encode() + b"\n")
        if time.monotonic() - self._last_flush >= FLUSH_SECONDS or self._values.held_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all results to the disk, so that home sees them.

        Raises:
            OSError: they can't be written.
        """
        self._values.flush()
        self._results.flush()
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Flush, and close the files."""
        self.flush()
        self._values.close()
        self._results.close()


class _GrowingFile:
    """A new file that grows. A process that the call forks can neither write the held bytes nor move the file's end."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._pieces: List[bytes] = []
        self._written_bytes, self.held_bytes = 0, 0

    @property
    def size(self) -> int:
        """The size in bytes, with the held ones."""
        return self._written_bytes + self.held_bytes

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.held_bytes += len(data)

    def flush(self) -> None:
        """Write all held bytes to the disk; may be repeated after an error."""
        if not self._pieces:
            return
        data, offset = memoryview(b"".join(self._pieces)), self._written_bytes
        while data:
            count = os.pwrite(self._descriptor, data, offset)
            data, offset = data[count:], offset + count
        os.fsync(self._descriptor)
        self._pieces, self._written_bytes, self.held_bytes = [], offset, 0

    def close(self) -> None:
        os.close(self._descriptor)
