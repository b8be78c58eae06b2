"""The results of an item stream, as home reads them. Pure functions."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib

from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.items import ERROR, VALUE
from slurm_ray_flow.remote.shared.protocol import parse_json


@dataclasses.dataclass(frozen=True)
class ItemResult:
    """What a running call says of one of its items.

    Attributes:
        item, bundle: the numbers of the item, and of the bundle that it came with.
        kind: "value" or "error".
        seconds: how long the item took.
        offset, length: where its bytes are in the file of values.
        crc32: their checksum.
    """

    item: int
    bundle: int
    kind: str
    seconds: float
    offset: int
    length: int
    crc32: int

    def verified(self, data: bytes | bytearray) -> bytes | None:
        """The bytes, if they are those of this result; else None."""
        return bytes(data) if len(data) == self.length and zlib.crc32(data) == self.crc32 else None


def parse_results(data: bytes) -> tuple[list[ItemResult], int]:
    """Read the whole lines at the start of `data`; a damaged one is passed over.

    Returns:
        The results, and how many bytes they took: a torn last line is left for the next reading.
    """
    end = data.rfind(b"\n") + 1
    results = []
    for line in data[:end].splitlines():
        with contextlib.suppress(ValueError):
            results.append(_result(line))
    return results, end


def _result(line: bytes) -> ItemResult:
    result = read_record(ItemResult, parse_json(line))
    numbers = (result.item, result.bundle, result.seconds, result.offset, result.length, result.crc32)
    if result.kind not in {VALUE, ERROR} or min(numbers) < 0 or max(numbers) >= 1 << 63:
        raise ValueError("this is no result of an item")
    return result
