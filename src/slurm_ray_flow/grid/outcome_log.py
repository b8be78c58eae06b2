"""The outcome log of a campaign: the bytes of all outcomes in one file, in the order in which they came.

Each is a frame: a header, then the bytes. The store keeps the log's size with the outcomes that are in it; what is
behind that size was never recorded, and is cut off when the log is opened to be written.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError

FORMAT = 0xA1
"""The first byte of each frame; another form has another one."""
HEADER = struct.Struct("<BBQQdI")
"""Format, kind, number, length of the bytes, seconds, checksum of all this and the bytes."""
_CHECKED = struct.Struct("<BBQQd")
PIECE = 1 << 20
"""A reader takes so many bytes at a time."""


class Frame(NamedTuple):
    """An outcome in the log.

    Attributes:
        number: the item's number.
        kind: its state, a number of `ItemState`.
        seconds: what its last attempt took.
        data: its bytes.
    """

    number: int
    kind: int
    seconds: float
    data: bytes


class Place(NamedTuple):
    """Where a frame is in the log, its header included."""

    offset: int
    length: int


class OutcomeLog:
    """The log as its one writer has it.

    Args:
        path: its file; it is made, with its folder, where there is none.
        size: the committed size. What is behind it is cut off.

    Raises:
        GridError: the file can't be opened, or is shorter than what was committed.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        with self._own_errors():
            private_folder(path.parent)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._begin(size)
            except BaseException:
                os.close(self._descriptor)
                raise
        self.size = size

    def __enter__(self) -> OutcomeLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def append(self, frames: Iterable[Frame]) -> list[Place]:
        """Write frames behind one another; gives the place of each. They are on the disk after `sync`.

        Raises:
            GridError: they can't be written. The log is what it was before.
        """
        places, pieces, offset = [], [], self.size
        for frame in frames:
            header = _header(frame)
            pieces += [header, frame.data]
            places.append(Place(offset, len(header) + len(frame.data)))
            offset += places[-1].length
        with self._own_errors():
            try:
                _write_at(self._descriptor, b"".join(pieces), self.size)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self.size)
                raise
        self.size = offset
        return places

    def sync(self) -> None:
        """Have all that was appended on the disk.

        Raises:
            GridError: the disk has failed; the log is to be opened anew, with the committed size.
        """
        with self._own_errors():
            _sync(self._descriptor)

    def close(self) -> None:
        """Close the file; a second time changes nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin(self, size: int) -> None:
        there = os.fstat(self._descriptor).st_size
        if there < size:
            raise _damaged(self._path, f"has {there} bytes, and {size} were recorded")
        if there > size:
            os.ftruncate(self._descriptor, size)
        if not size:
            sync_folder(self._path.parent)

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except GridError:
            raise
        except (OSError, SlurmRayFlowError) as error:
            what = f"an outcome log can't be written: {getattr(error, 'strerror', None) or error}"
            raise GridError(
                what, where=str(self._path), advice="see that its disk has room and can be written"
            ) from error


def read_frames(path: Path, offset: int, size: int) -> Iterator[Frame]:
    """The frames of a log from `offset` up to the committed `size`, in the order of ends.

    Raises:
        GridError: the log can't be read, or is damaged there.
    """
    try:
        with path.open("rb", buffering=PIECE) as stream:
            stream.seek(offset)
            while offset < size:
                frame = _read(stream, path, offset, size)
                offset += HEADER.size + len(frame.data)
                yield frame
    except OSError as error:
        raise _unreadable(path, error) from error


def frame_at(path: Path, offset: int, length: int) -> Frame:
    """The one frame at a place.

    Raises:
        GridError: the log can't be read, or is damaged there.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return _read(stream, path, offset, offset + length)
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(stream: BinaryIO, path: Path, offset: int, end: int) -> Frame:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size or header[0] != FORMAT:
        raise _damaged(path, f"has no outcome at byte {offset}")
    _, kind, number, length, seconds, checksum = HEADER.unpack(header)
    if offset + HEADER.size + length > end:
        raise _damaged(path, f"has an outcome at byte {offset} that goes beyond its end")
    data = stream.read(length)
    if zlib.crc32(data, zlib.crc32(header[: _CHECKED.size])) != checksum:
        raise _damaged(path, f"has a damaged outcome at byte {offset}")
    return Frame(number, kind, seconds, data)


def _header(frame: Frame) -> bytes:
    checked = _CHECKED.pack(FORMAT, frame.kind, frame.number, len(frame.data), frame.seconds)
    return checked + zlib.crc32(frame.data, zlib.crc32(checked)).to_bytes(4, "little")


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _sync(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS has no fdatasync


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, how: str) -> GridError:
    advice = "the values behind it are lost, unless a copy of the file is put in its place"
    return GridError(f"an outcome log is damaged: it {how}", where=str(path), advice=advice)


def _unreadable(path: Path, error: OSError) -> GridError:
    return GridError(f"an outcome log can't be read: {error.strerror or error}", where=str(path))
