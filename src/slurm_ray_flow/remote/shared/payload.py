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
    """The file is no payload, is incomplete, or has another digest."""


def plain_dump(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """Pickle with the standard library alone."""
    pickle.Pickler(file, protocol=5, buffer_callback=buffer_callback).dump(value)


def plain_load(file: Any, buffers: List[bytearray]) -> Any:
    """Unpickle with the standard library alone."""
    return pickle.Unpickler(file, buffers=buffers).load()


def write(path: str, value: Any, dump: Dump = plain_dump, durable: bool = False) -> Tuple[str, int]:
    """Write `value` to a temporary file and rename it to `path`, so that readers never see an incomplete one.

    Args:
        path: the file; it is replaced if it exists.
        value: an object that `dump` can pickle.
        dump: `dump(value, file, buffer_callback)`, a pickler of protocol 5.
        durable: whether the bytes are forced to the disk before the rename.

    Returns:
        The SHA-256 of the file in hexadecimal, and its size in bytes.

    Raises:
        OSError: the file can't be written; nothing is left behind.
    """
    chunks, buffers = _pickled(value, dump)
    temporary = "{}.{}.part".format(path, os.getpid())
    try:
        with _create(temporary) as file, _HashedWriter(file) as writer:
            _write_parts(writer, chunks, [buffer.raw() for buffer in buffers])
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return writer.digest(), writer.size


def read(path: str, load: Load = plain_load, sha256: Optional[str] = None) -> Any:
    """Read a payload; its arrays are writable, in memory of their own.

    The digest is checked first. Then the pickle is read from the file, so that large objects are in memory only once.

    Args:
        path: the file.
        load: `load(file, buffers)`, the unpickler for `dump`.
        sha256: the digest that the file must have, or None for no check.

    Raises:
        DamagedPayload: the file is not a complete payload, or has another digest. Nothing of it was unpickled.
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
    """Collects the output of a pickler as chunks, so that large bytes objects are not copied."""

    def __init__(self) -> None:
        self.chunks: List[bytes] = []

    def write(self, data: Bytes) -> int:
        self.chunks.append(data if isinstance(data, bytes) else bytes(data))
        return len(data)


def _pickled(value: Any, dump: Dump) -> Tuple[List[bytes], List[pickle.PickleBuffer]]:
    sink = _Sink()
    buffers: List[pickle.PickleBuffer] = []

    def collect(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffer.raw()
        except BufferError:  # it is not contiguous, and stays in the pickle
            return True
        buffers.append(buffer)
        return False

    dump(value, sink, collect)
    return sink.chunks, buffers


def _create(path: str) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    return open(descriptor, "wb", buffering=0)


def _write_parts(writer: _HashedWriter, chunks: List[bytes], buffers: List[memoryview]) -> None:
    writer.write(MAGIC + _number(sum(map(len, chunks))))
    for group in _joined_chunks(chunks):
        writer.write(group)
    writer.write(_number(len(buffers)) + b"".join(_number(len(buffer)) for buffer in buffers))
    for buffer in buffers:
        writer.write(b"\0" * (-writer.size % ALIGNMENT))
        writer.write(buffer)


def _joined_chunks(chunks: List[bytes]) -> Iterator[bytes]:
    """The chunks with small ones joined, so that a pickle of many frames takes few writes."""
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
    """The offset of the pickle, which is skipped, and the buffers after it."""
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
    """A file whose bytes are hashed as they are read or written; large ones in a thread, beside the disk's work."""

    def __init__(self, file: Any, enabled: bool = True) -> None:
        self._file, self._hash, self._enabled = file, hashlib.sha256(), enabled
        self._pool: Optional[ThreadPoolExecutor] = None
        self._last_update: Optional[Future[None]] = None
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
        if not self._enabled:
            return
        if len(data) < 1 << 20 and self._pool is None:
            self._hash.update(data)
            return
        self._pool = self._pool or ThreadPoolExecutor(1)
        self._last_update = self._pool.submit(self._hash.update, data)

    def _wait_for_hash(self) -> None:
        """Wait for the last update of the hash, so that no more than one chunk waits in memory."""
        if self._last_update is not None:
            self._last_update.result()


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
        """The next `size` bytes after a gap."""
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
        """Skip the next bytes; if they are hashed, at most two chunks of them are in memory at a time."""
        self._check(size)
        if not self._enabled:
            self.size = self._file.seek(size, os.SEEK_CUR)
            return
        for start in range(0, size, CHUNK):
            piece = memoryview(bytearray(min(CHUNK, size - start)))
            self._fill(piece)
            self._wait_for_hash()
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
