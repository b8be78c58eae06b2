"""The results of an item stream, as home reads them. Pure functions."""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from typing import Any, NamedTuple

from slurm_ray_flow.core.run import Outcome, error_of
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.remote.shared import failures, pickling
from slurm_ray_flow.remote.shared.items import CRASHED, ERROR, INTERRUPTED, VALUE
from slurm_ray_flow.remote.shared.protocol import parse_json

KINDS = (VALUE, ERROR, CRASHED, INTERRUPTED)
_LIMIT = 1 << 63
_PLAIN_FIELDS = 7
"""The fields of an item that has a value and printed nothing."""
_LINE_START = '{"item": '
_DECODER = json.JSONDecoder()


class ItemResult(NamedTuple):
    """What a running call says of one of its items. (A frozen dataclass takes three times as long to make.)

    Attributes:
        item, bundle: the numbers of the item, and of the bundle that it came with.
        kind: "value", "error", "crashed" for an item whose process ended before it did, or "interrupted" for one that
            was ended with its pilot, whose time limit passed; that one has no bytes.
        seconds: how long the item took.
        offset, length: where its bytes are in the file of values.
        crc32: their checksum.
        group: for failures: what this one has in common with others, such as "ValueError at train.py:12 in fit".
        message: for failures: the exception in a line.
        log: a worker's number, and start and length of what the item printed in that worker's log; None for nothing.
    """

    item: int
    bundle: int
    kind: str
    seconds: float
    offset: int
    length: int
    crc32: int
    group: str = ""
    message: str = ""
    log: tuple[int, int, int] | None = None

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
    for line in data[:end].decode("utf-8", "replace").split("\n"):
        with contextlib.suppress(ValueError):
            if line:
                results.append(_result(line))
    return results, end


def _result(line: str) -> ItemResult:
    with contextlib.suppress(ValueError, RecursionError):
        fields, length = _DECODER.raw_decode(line)  # takes half as long as a general reader
        if length == len(line):
            return _checked(fields)
    try:
        return _checked(parse_json(line))
    except ValueError:
        start = line.rfind(_LINE_START)
        if start <= 0:
            raise
    return _checked(parse_json(line[start:]))  # a process was killed in its line, and another one has written after it


def _checked(fields: Any) -> ItemResult:
    """The result with these fields. Ten thousand a second come from each pilot: no general reader is quick enough."""
    try:
        item, bundle, kind, seconds = fields["item"], fields["bundle"], fields["kind"], fields["seconds"]
        offset, length, crc32 = fields["offset"], fields["length"], fields["crc32"]
    except (KeyError, TypeError, IndexError):
        raise ValueError("this is no result of an item") from None
    if (
        kind not in KINDS
        or not (type(item) is type(bundle) is type(offset) is type(length) is type(crc32) is int)
        or type(seconds) not in (float, int)
        or min(item, bundle, offset, length, crc32) < 0
        or max(item, bundle, offset, length, crc32) >= _LIMIT
        or not 0 <= seconds < 1e11
    ):
        raise ValueError("this is no result of an item")
    if len(fields) == _PLAIN_FIELDS:
        return ItemResult(item, bundle, kind, seconds, offset, length, crc32)
    group, message = (_text(fields.get(name)) for name in ("group", "message"))
    return ItemResult(item, bundle, kind, seconds, offset, length, crc32, group, message, _slice(fields.get("log")))


def _text(value: Any) -> str:
    return encodable(value) if isinstance(value, str) else ""


def _slice(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(type(one) is int and 0 <= one < _LIMIT for one in value):
        return value[0], value[1], value[2]
    return None


def outcome_of_item(kind: str, data: bytes, where: str) -> Outcome:
    """The value or the exception in the bytes of a result. It unpickles: only for results of the user's own runs.

    Args:
        kind: the result's kind.
        data: its verified bytes.
        where: the place of an error, for people: the cluster, the pilot's run, the item.

    Raises:
        Exception: whatever the unpickling of the user's objects raises.
    """
    if kind == VALUE:
        return Outcome(value=pickling.load(io.BytesIO(data), []))
    if not data or data.startswith(b"{"):  # a failure that has no exception of the function's own
        fields = parse_json(data) if data else {}
        message = encodable(str(fields.get("message") or "the worker died"))
        return Outcome(exception=error_of(str(fields.get("cause") or "crashed"), message, where))
    packed = pickling.load(io.BytesIO(data), [])
    return Outcome(exception=failures.unpack(packed), traceback=encodable(packed.get("traceback", "")))
