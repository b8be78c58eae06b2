"""The arguments of a campaign's items at home: files of 1,000 items each, written by the client, read by the engine.

`arguments/000000` in the campaign's folder has the items 0 to 999, in the form of a bundle. A file is written whole and
never changes, but for the last one, which grows until it is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError
from slurm_ray_flow.grid.outcome_log import sync_folder
from slurm_ray_flow.remote.shared.files import lock_if_possible
from slurm_ray_flow.remote.shared.items import Item, pack_bundle, unpack_bundle

BLOCK = 1000
"""So many items are in one file."""
KEPT_BYTES = 16 << 20
"""A reader keeps blocks of so many bytes in memory, and one at least."""
ITEM_BYTES = 150
"""What an item takes in memory beside its arguments."""
FOLDER = "arguments"


class ArgumentWriter:
    """Writes the arguments of new items. One process at a time adds items to a campaign.

    Args:
        folder: the campaign's folder.
        total: how many items the campaign has, by the store. Arguments behind them, of a client that ended before it
            had added its items, are written over.

    Raises:
        GridError: somebody else adds items now, the arguments of the items that are there are gone or damaged, or the
            folder can't be written.
    """

    def __init__(self, folder: Path, total: int = 0) -> None:
        self._folder, self.count = folder / FOLDER, total
        self._lock = -1
        with _own_errors(self._folder):
            private_folder(self._folder)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                lock_if_possible(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._block = self._last_block(total)
            except BaseException:
                os.close(self._lock)
                raise

    def __enter__(self) -> ArgumentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._unlock()

    def add(self, data: bytes) -> int:
        """Add an item's arguments; gives its number.

        Raises:
            GridError: they can't be written.
        """
        number = self.count
        self._block.append((number, data))
        self.count += 1
        if len(self._block) == BLOCK:
            self._write_block()
        return number

    def flush(self) -> None:
        """Write what is left, and have all of it on the disk. The items may be added to the campaign then.

        Raises:
            GridError: it can't be written.
        """
        if self._block:
            self._write_block()
        with _own_errors(self._folder):
            sync_folder(self._folder)
            sync_folder(self._folder.parent)

    def close(self) -> None:
        """Flush, and let others add items; a second time changes nothing.

        Raises:
            GridError: what is left can't be written.
        """
        if self._lock < 0:
            return
        try:
            self.flush()
        finally:
            self._unlock()

    def abandon(self) -> None:
        """Let others add items, and write nothing more."""
        self._unlock()

    def _last_block(self, total: int) -> list[Item]:
        """The items of the last file that is not full."""
        if total % BLOCK == 0:
            return []
        held = _block(self._folder, total // BLOCK)[: total % BLOCK]
        if len(held) < total % BLOCK:
            raise _missing(self._folder, held[-1][0] + 1 if held else total - total % BLOCK)
        return held

    def _write_block(self) -> None:
        with _own_errors(self._folder):
            write_whole(_file(self._folder, self._block[0][0] // BLOCK), pack_bundle(self._block))
        self._block = self._block if len(self._block) < BLOCK else []  # one that is not full may go on

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class ArgumentReader:
    """Reads the arguments of items, and keeps the last blocks in memory.

    Args:
        folder: the campaign's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._kept: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        self._sizes: dict[int, int] = {}

    def bytes_of(self, numbers: Iterable[int]) -> list[tuple[int, bytes]]:
        """The arguments of items, in the order of their numbers as given.

        Raises:
            GridError: a file is missing or damaged, or has no such item.
        """
        return [(number, self._bytes(number)) for number in numbers]

    def forget(self, block: int) -> None:
        """Read a block anew when it is needed next: it was written again."""
        self._kept.pop(block, None)
        self._sizes.pop(block, None)

    def _bytes(self, number: int) -> bytes:
        block = number // BLOCK
        held = self._kept.get(block)
        if held is None or number not in held:  # the last block grows
            held = self._load(block)
        self._kept.move_to_end(block)
        if number not in held:
            raise _missing(self._folder, number)
        return held[number]

    def _load(self, block: int) -> dict[int, bytes]:
        held = dict(_block(self._folder, block))
        self._kept[block] = held
        self._sizes[block] = sum(map(len, held.values())) + ITEM_BYTES * len(held)
        while len(self._kept) > 1 and sum(self._sizes[one] for one in self._kept) > KEPT_BYTES:
            oldest = next(one for one in self._kept if one != block)
            del self._kept[oldest], self._sizes[oldest]
        return held


def _file(folder: Path, block: int) -> Path:
    return folder / f"{block:06d}"


def _block(folder: Path, block: int) -> list[Item]:
    path = _file(folder, block)
    try:
        items = unpack_bundle(path.read_bytes())
    except OSError as error:
        raise GridError(f"arguments of items can't be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise GridError(f"arguments of items are damaged: {error}", where=str(path)) from error
    if [number for number, _ in items] != list(range(block * BLOCK, block * BLOCK + len(items))):
        raise GridError("arguments of items are damaged: they have other numbers", where=str(path))
    return items


def _missing(folder: Path, number: int) -> GridError:
    return GridError(f"item {number} has no arguments", where=str(_file(folder, number // BLOCK)))


@contextlib.contextmanager
def _own_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        advice = "wait until the other process has added its items"
        raise GridError("another process adds items to this campaign", where=str(folder), advice=advice) from None
    except GridError:
        raise
    except (OSError, SlurmRayFlowError) as error:
        advice = "see that its disk has room and can be written"
        what = f"arguments of items can't be written: {getattr(error, 'strerror', None) or error}"
        raise GridError(what, where=str(folder), advice=advice) from error
