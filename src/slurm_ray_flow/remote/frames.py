"""Messages between home and the agent: a header of 24 hexadecimal digits, JSON, and bytes that travel as they are.

The header is the length of the JSON (8 digits) and of the bytes (16 digits), so that a shell script can write one, too.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterable, List, Tuple

HEADER = 24

Read = Callable[[int], bytes]
"""Gives at most that many bytes, at least one; none at the end."""


class Cut(Exception):
    """The stream ended, or holds something else than messages."""


def packed(message: Dict[str, Any], data: Iterable[bytes] = ()) -> List[bytes]:
    """A message in pieces, so that large bytes are not copied."""
    text = json.dumps(message, separators=(",", ":")).encode()
    pieces = [piece for piece in data if piece]
    header = "{:08x}{:016x}".format(len(text), sum(len(piece) for piece in pieces))
    return [header.encode() + text, *pieces]


def unpacked(read: Read) -> Tuple[Dict[str, Any], bytes]:
    """Read one message.

    Raises:
        Cut: there is no whole one.
    """
    header = exactly(read, HEADER)
    try:
        sizes = int(header[:8], 16), int(header[8:], 16)
        message: Dict[str, Any] = json.loads(exactly(read, sizes[0]))
    except ValueError as error:
        raise Cut("this is no message: {!r}".format(header)) from error
    return message, exactly(read, sizes[1])


def exactly(read: Read, size: int) -> bytes:
    """So many bytes, or Cut."""
    pieces = []
    while size:
        piece = read(min(size, 1024 * 1024))
        if not piece:
            raise Cut("the stream ended")
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


# ---- several operations in one message


def requests_packed(requests: List[Tuple[str, Dict[str, Any]]]) -> Tuple[List[Dict[str, Any]], List[bytes]]:
    """What JSON holds of some operations, and their bytes, which follow it in order."""
    texts, data = [], []
    for name, arguments in requests:
        text: Dict[str, Any] = {"name": name, "arguments": dict(arguments.items())}
        if isinstance(arguments.get("data"), (bytes, bytearray, memoryview)):
            data.append(bytes(text["arguments"].pop("data")))
            text["size"] = len(data[-1])
        texts.append(text)
    return texts, data


def requests_unpacked(texts: List[Dict[str, Any]], data: bytes) -> List[Dict[str, Any]]:
    """The operations again, with their bytes."""
    requests, start = [], 0
    for text in texts:
        arguments = dict(text["arguments"])
        if "size" in text:
            arguments["data"] = data[start : start + text["size"]]
            start += text["size"]
        requests.append({"name": text["name"], "arguments": arguments})
    return requests


def results_packed(results: List[Any]) -> Tuple[List[Dict[str, Any]], List[bytes]]:
    """What JSON holds of some results, and the bytes among them."""
    texts: List[Dict[str, Any]] = []
    data = []
    for result in results:
        if isinstance(result, bytes):
            data.append(result)
            texts.append({"size": len(result)})
        else:
            texts.append({"value": result})
    return texts, data


def results_unpacked(texts: List[Dict[str, Any]], data: bytes) -> List[Any]:
    """The results again."""
    results: List[Any] = []
    start = 0
    for text in texts:
        if "size" in text:
            results.append(data[start : start + text["size"]])
            start += text["size"]
        else:
            results.append(text["value"])
    return results
