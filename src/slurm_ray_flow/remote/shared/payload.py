"""The file format in which functions, arguments and outcomes travel.

A payload is `b"SRF1"`, the length and bytes of a pickle, then count, lengths and bytes of the out-of-band buffers of
pickle protocol 5, each aligned to 64 bytes. All numbers are little-endian and eight bytes long.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import struct
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO, Callable, Iterator, List, Optional, Tuple, Type, Union

MAGIC = b"SRF1"
ALIGNMENT = 64
CHUNK = 8 << 20

Bytes = Union[bytes, bytearray, memoryview]
Dump = Callable[[Any, Any, Callable[[pickle.PickleBuffer], Any]], None]
Load = Callable[[Any, List[bytearray]], Any]


class DamagedPayload(ValueError):
    """The file is no payload, is cut short, or is not the one that the digest names."""


def plain_dump(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """Pickle with the standard library alone."""
    pickle.Pickler(file, protocol=5, buffer_callback=buffer_callback).dump(value)


def plain_load(file: Any, buffers: List[bytearray]) -> Any:
    """Unpickle with the standard library alone."""
    return pickle.Unpickler(file, buffers=buffers).load()


def write(path: str, value: Any, dump: Dump = plain_dump, durable: bool = False) -> Tuple[str, int]:
    """Write `value` to `path`: beside it first, then renamed, so that a reader never sees half of it.

    Args:
        path: the file; it is replaced if it exists.
        value: what `dump` can pickle.
        dump: `dump(value, file, buffer_callback)`, a pickler of protocol 5.
        durable: whether the bytes are forced to the disk before the rename.

    Returns:
        The SHA-256 of the file in hexadecimal, and its size in bytes.

    Raises:
        OSError: the file can't be written; nothing is left behind.
    """
    chunks, buffers = _pickled(value, dump)
    beside = "{}.{}.part".format(path, os.getpid())
    try:
        with _create(beside) as file, _HashedWriter(file) as writer:
            _write_parts(writer, chunks, [buffer.raw() for buffer in buffers])
            if durable:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    return writer.digest(), writer.size


def read(path: str, load: Load = plain_load, sha256: Optional[str] = None) -> Any:
    """Read what `write` wrote; arrays come back writable, in memory of their own.

    The pickle is unpickled from the file itself, after that was checked: what is large in it is in memory once.

    Args:
        path: the file.
        load: `load(file, buffers)`, the unpickler that belongs to `dump`.
        sha256: the digest the file must have, or None to trust it.

    Raises:
        DamagedPayload: the file is not a whole payload, or has another digest. Nothing of it was unpickled.
        OSError: the file can't be read.
    """
    with open(path, "rb") as file:
        with _HashedReader(file, sha256 is not None) as reader:
            start, buffers = _read_parts(reader)
        if sha256 is not None and reader.digest() != sha256:
            raise DamagedPayload("{} has another digest than the one that was recorded".format(path))
        file.seek(start)
        return load(file, buffers)


class _Sink:
    """Collects what a pickler writes without joining it: a large bytes object is kept, not copied."""

    def __init__(self) -> None:
        self.chunks: List[bytes] = []

    def write(self, data: Bytes) -> int:
        self.chunks.append(data if isinstance(data, bytes) else bytes(data))
        return len(data)


def _pickled(value: Any, dump: Dump) -> Tuple[List[bytes], List[pickle.PickleBuffer]]:
    sink = _Sink()
    buffers: List[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffer.raw()
        except BufferError:  # not contiguous: it goes into the pickle
            return True
        buffers.append(buffer)
        return False

    dump(value, sink, keep)
    return sink.chunks, buffers


def _create(path: str) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    return open(descriptor, "wb", buffering=0)


def _write_parts(writer: _HashedWriter, chunks: List[bytes], buffers: List[memoryview]) -> None:
    writer.write(MAGIC + _number(sum(map(len, chunks))))
    for group in _grouped(chunks):
        writer.write(group)
    writer.write(_number(len(buffers)) + b"".join(_number(len(buffer)) for buffer in buffers))
    for buffer in buffers:
        writer.write(b"\0" * (-writer.size % ALIGNMENT))
        writer.write(buffer)


def _grouped(chunks: List[bytes]) -> Iterator[bytes]:
    """Small chunks are joined, so that a pickle of many frames is not a write each."""
    small: List[bytes] = []
    for chunk in chunks:
        if len(chunk) < CHUNK:
            small.append(chunk)
            if len(small) < 1024:
                continue
        yield b"".join(small)
        small = []
        if len(chunk) >= CHUNK:
            yield chunk
    yield b"".join(small)


def _read_parts(reader: _HashedReader) -> Tuple[int, List[bytearray]]:
    """Where the pickle begins, which is passed over, and the buffers behind it."""
    if bytes(reader.read(4)) != MAGIC:
        raise DamagedPayload("{} is not a payload".format(reader.name))
    length, start = _to_number(reader.read(8)), reader.size
    reader.skip(length)
    lengths = [_to_number(reader.read(8)) for _ in range(_to_number(reader.read(8)))]
    return start, [reader.read(length, -reader.size % ALIGNMENT) for length in lengths]


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


def _to_number(data: bytearray) -> int:
    return int(struct.unpack("<Q", data)[0])


class _Hashed:
    """Hashes in a thread of its own what is large, while the same bytes go to or come from the disk."""

    def __init__(self, file: Any, wanted: bool = True) -> None:
        self._file, self._hash, self._wanted = file, hashlib.sha256(), wanted
        self._pool: Optional[ThreadPoolExecutor] = None
        self._last: Optional[Future[None]] = None
        self.size, self.name = 0, str(file.name)

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], _: Optional[BaseException], __: Optional[TracebackType]
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def _update(self, data: Bytes) -> None:
        self.size += len(data)
        if not self._wanted:
            return
        if len(data) < 1 << 20 and self._pool is None:
            self._hash.update(data)
            return
        self._pool = self._pool or ThreadPoolExecutor(1)
        self._last = self._pool.submit(self._hash.update, data)

    def _keep_up(self) -> None:
        """Wait until all so far is hashed, so that no more of it is held than what comes next."""
        if self._last is not None:
            self._last.result()


class _HashedWriter(_Hashed):
    def write(self, data: Bytes) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            piece = view[start : start + CHUNK]
            self._update(piece)
            while len(piece):
                piece = piece[self._file.write(piece) :]


class _HashedReader(_Hashed):
    def read(self, size: int, gap: int = 0) -> bytearray:
        """The next bytes, after a gap."""
        self.skip(gap)
        self._check(size)
        data = bytearray(size)
        view = memoryview(data)
        for start in range(0, size, CHUNK):
            piece = view[start : start + CHUNK]
            self._fill(piece)
            self._update(piece)
        return data

    def skip(self, size: int) -> None:
        """Pass over the next bytes; where they are hashed, two chunks of them at most are in memory at a time."""
        self._check(size)
        if not self._wanted:
            self.size = self._file.seek(size, os.SEEK_CUR)
            return
        for start in range(0, size, CHUNK):
            piece = memoryview(bytearray(min(CHUNK, size - start)))
            self._fill(piece)
            self._keep_up()
            self._update(piece)

    def _check(self, size: int) -> None:
        if size > os.fstat(self._file.fileno()).st_size:
            raise DamagedPayload("{} is cut short".format(self.name))

    def _fill(self, piece: memoryview) -> None:
        while len(piece):
            count = self._file.readinto(piece)
            if not count:
                raise DamagedPayload("{} is cut short".format(self.name))
            piece = piece[count:]
