"""Messages between home and the agent: a header of 24 hexadecimal digits, JSON, and raw bytes.

The header is the length of the JSON (8 digits) and of the bytes (16 digits): a shell script can write one, too.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, Iterable, List, Tuple

from slurm_ray_flow.remote.shared.protocol import parse_json

HEADER = 24

Read = Callable[[int], bytes]
"""Returns at least one byte and at most that many; none at the stream's end."""


class StreamEnded(Exception):
    """The stream ended."""


class NotAMessage(StreamEnded):
    """The stream has something else than messages."""


def packed(message: Dict[str, Any], data: Iterable[bytes] = ()) -> List[bytes]:
    """A message as a list of byte strings, so that large ones are not copied."""
    text = json.dumps(message, separators=(",", ":")).encode()
    pieces = [piece for piece in data if piece]
    header = "{:08x}{:016x}".format(len(text), sum(len(piece) for piece in pieces))
    return [header.encode() + text, *pieces]


def unpacked(read: Read, most_text: int = 1 << 32, most_data: int = 1 << 64) -> Tuple[Dict[str, Any], bytes]:
    """Read one message.

    Args:
        read: reads from the stream.
        most_text, most_data: the most bytes that the message's JSON and its raw bytes may have.

    Raises:
        StreamEnded: the stream ended before the end of the message.
        NotAMessage: the stream has something else, or a larger message.
    """
    header = exactly(read, HEADER)
    if not re.fullmatch(b"[0-9a-f]{24}", header):
        raise NotAMessage("this is no message: {!r}".format(header))
    text, data = int(header[:8], 16), int(header[8:], 16)
    if text > most_text or data > most_data:
        raise NotAMessage("a message of {} bytes is too large".format(text + data))
    try:
        message = parse_json(exactly(read, text))
    except ValueError as error:
        raise NotAMessage("this is no JSON") from error
    if not isinstance(message, dict):
        raise NotAMessage("this is no message: a {}".format(type(message).__name__))
    return message, exactly(read, data)


def exactly(read: Read, size: int) -> bytes:
    """Read exactly so many bytes.

    Raises:
        StreamEnded: there are fewer.
    """
    pieces = []
    while size:
        piece = read(min(size, 1024 * 1024))
        if not piece:
            raise StreamEnded("the stream ended")
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


# ---- several operations in one message


def requests_packed(requests: List[Tuple[str, Dict[str, Any]]]) -> Tuple[List[Dict[str, Any]], List[bytes]]:
    """The JSON parts of some operations, and their raw bytes in the same order."""
    texts, data = [], []
    for name, arguments in requests:
        text: Dict[str, Any] = {"name": name, "arguments": dict(arguments.items())}
        if isinstance(arguments.get("data"), (bytes, bytearray, memoryview)):
            data.append(bytes(text["arguments"].pop("data")))
            text["size"] = len(data[-1])
        texts.append(text)
    return texts, data


def requests_unpacked(texts: List[Dict[str, Any]], data: bytes) -> List[Dict[str, Any]]:
    """The operations that `requests_packed` was given."""
    requests, start = [], 0
    for text in texts:
        arguments = dict(text["arguments"])
        if "size" in text:
            arguments["data"] = data[start : start + text["size"]]
            start += text["size"]
        requests.append({"name": text["name"], "arguments": arguments})
    return requests


def results_packed(results: List[Any]) -> Tuple[List[Dict[str, Any]], List[bytes]]:
    """The JSON parts of some results, and the raw bytes among them."""
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
    """The results that `results_packed` was given."""
    results: List[Any] = []
    start = 0
    for text in texts:
        if "size" in text:
            results.append(data[start : start + text["size"]])
            start += text["size"]
        else:
            results.append(text["value"])
    return results
