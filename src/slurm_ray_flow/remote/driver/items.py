"""The call's side of an item stream: it takes bundles of items while it runs, and writes results one by one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

from slurm_ray_flow.remote.shared import files
from slurm_ray_flow.remote.shared.items import BUNDLE, CLOSED, RESULTS, VALUES, WITHDRAWN, Item, unpack_bundle
from slurm_ray_flow.remote.shared.protocol import TAKEN

IDLE_SECONDS = 120.0
LARGEST = 0x7FFFF000
"""The most bytes that one `write` takes."""

LogSlice = Tuple[int, int, int]
"""A worker's number, and start and length of a piece of its log."""


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
        sink.sync()

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
    """Writes the results of a call's items. Each process that writes some has a sink of its own.

    A result is written at once, its value by one `write` and then its line by another, both to the end of files that
    all processes share. So a process that is killed loses the result that it was about to write, and no other one.
    `sync` has all of them survive a loss of power.

    Args:
        folder: the folder `items` of the run. It is made if home has placed no bundle yet.
        retry: what to do when a result can't be written, say because the disk is full: gets the error and the number of
            earlier tries, waits, and says whether to try again. Without it the error is raised at once.

    Raises:
        OperationError: the folder can't be made.
        OSError: the files can't be opened.
    """

    def __init__(self, folder: str, retry: Callable[[OSError, int], bool] = lambda *_: False) -> None:
        files.private_folder(folder)
        self._values, self._results = (_AppendedFile(os.path.join(folder, name)) for name in (VALUES, RESULTS))
        self._retry = retry

    def add(
        self,
        bundle: int,
        item: int,
        kind: str,
        seconds: float,
        data: bytes,
        group: str = "",
        message: str = "",
        log: Optional[LogSlice] = None,
    ) -> None:
        """Write the result of an item.

        Args:
            bundle: the number of the bundle that the item came with.
            item: the item's number.
            kind: `VALUE`, `ERROR` or `CRASHED`.
            seconds: the time that the item took.
            data: the result's bytes for home, `LARGEST` at most.
            group: for failures: what this one has in common with others, such as `ValueError at train.py:12 in fit`.
            message: for failures: the exception in a line.
            log: where that is what the item printed, if it printed something.

        Raises:
            OSError: the result can't be written; it may be added again.
        """
        offset = self._append(self._values, data)
        line = '{"item": %d, "bundle": %d, "kind": "%s", "seconds": %.6f, "offset": %d, "length": %d, "crc32": %d' % (
            item, bundle, kind, seconds, offset, len(data), zlib.crc32(data),
        )  # fmt: skip
        if group or message:
            line += ', "group": {}, "message": {}'.format(json.dumps(group), json.dumps(message))
        if log is not None:
            line += ', "log": [%d, %d, %d]' % log
        self._append(self._results, line.encode() + b"}\n", is_line=True)

    def _append(self, file: _AppendedFile, data: bytes, is_line: bool = False) -> int:
        tries = 0
        while True:
            try:
                return file.append(data, is_line)
            except OSError as error:
                if not self._retry(error, tries):
                    raise
            tries += 1

    @property
    def results_size(self) -> int:
        """The bytes of all lines so far, also those of other processes."""
        return self._results.size

    def begin_line(self) -> None:
        """Begin the next line with a line break, since a process was killed that may have left a torn line."""
        self._results.torn = True

    def sync(self) -> None:
        """Have all results on the disk, also those of other processes.

        Raises:
            OSError: they can't be written there.
        """
        self._values.sync()
        self._results.sync()

    def close(self) -> None:
        """Sync, and close the files."""
        self.sync()
        self._values.close()
        self._results.close()


class _AppendedFile:
    """A file to which several processes append.

    Attributes:
        torn: whether the file may end with a part of a line.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._synced_size, self.torn = 0, False

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def append(self, data: bytes, is_line: bool) -> int:
        """Append by one write; returns the offset of the data."""
        if not data:
            return 0
        written = b"\n" + data if is_line and self.torn else data
        count = os.write(self._descriptor, written)
        if count != len(written):
            self.torn = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.torn = False
        return os.lseek(self._descriptor, 0, os.SEEK_CUR) - len(data)

    def sync(self) -> None:
        size = self.size
        if size != self._synced_size:
            os.fsync(self._descriptor)
            self._synced_size = size

    def close(self) -> None:
        os.close(self._descriptor)
