"""The files of an item stream, in the folder `items` of a run: bundles that home places, results that the call writes.

- `0000000007.bundle`: a JSON line with number and length of each item, then their bytes. The call takes it by renaming
  it to `0000000007.bundle.running`, home withdraws it by renaming it to `0000000007.bundle.withdrawn`: one of them can.
- `closed`: no more bundles come.
- `values`: the bytes of the results, one after another.
- `results.jsonl`: a line for each result, written after the bytes that it names.
- `log.3`: what the items of worker 3 of a pilot printed.

What the bytes of an item or of a result are is a matter of home and of the call alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Dict, Iterable, List, Tuple

from slurm_ray_flow.remote.shared.protocol import TAKEN, is_amount, parse_json

BUNDLE, WITHDRAWN = ".bundle", ".withdrawn"
CLOSED, RESULTS, VALUES = "closed", "results.jsonl", "values"
VALUE, ERROR, CRASHED, INTERRUPTED = "value", "error", "crashed", "interrupted"
"""The kinds of results: a value, an exception of the item, an item whose process ended before it did, and an item that
was ended with its pilot, whose time limit passed."""

Item = Tuple[int, bytes]
"""Its number, and what the call needs for it."""


def bundle_name(number: int) -> str:
    """The name of a bundle's file; names are in the order of numbers."""
    return "{:010d}{}".format(number, BUNDLE)


def log_name(worker: int) -> str:
    """The name of the file with what a worker's items printed."""
    return "log.{}".format(worker)


def pack_bundle(items: Iterable[Item]) -> bytes:
    """The content of a bundle's file."""
    held = list(items)
    header = {"format": 1, "items": [[number, len(data)] for number, data in held]}
    return b"".join([json.dumps(header).encode() + b"\n", *(data for _, data in held)])


def unpack_bundle(content: bytes) -> List[Item]:
    """The items of a bundle's file.

    Raises:
        ValueError: it is none, or is cut short.
    """
    text, _, data = content.partition(b"\n")
    header = parse_json(text)
    if not isinstance(header, dict) or header.get("format") != 1 or not _are_sizes(header.get("items")):
        raise ValueError("this is no bundle of items")
    items, start = [], 0
    for number, length in header["items"]:
        items.append((number, data[start : start + length]))
        start += length
    if start != len(data):
        raise ValueError("a bundle of {} bytes has {}".format(start, len(data)))
    return items


def _are_sizes(items: Any) -> bool:
    return isinstance(items, list) and all(
        isinstance(item, list) and len(item) == 2 and all(isinstance(one, int) and is_amount(one) for one in item)
        for item in items
    )


def withdraw(path: str) -> bool:
    """Take a bundle back; says whether home has it now, and the call never will.

    The call counts as the winner of a bundle that was placed twice, since the answer to the first time was lost.
    """
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, path + WITHDRAWN)
    return os.path.exists(path + WITHDRAWN) and not os.path.exists(path + TAKEN)


OPERATIONS: Dict[str, Any] = {"items.withdraw": withdraw}
