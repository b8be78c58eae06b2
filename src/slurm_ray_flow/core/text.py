"""Text of others, as it can be shown: nothing in it moves a cursor, names a window or fills a screen. Pure."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """The text with all that would steer a terminal spelled out: an escape becomes `\\x1b`. Lines stay lines."""
    if text.isprintable():
        return text
    return "".join(letter if _harmless(letter) else _spelled(letter) for letter in text.replace("\r\n", "\n"))


def encodable(text: str) -> str:
    """The text as every encoder takes it: what is no character (a byte of a name that is not UTF-8) is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _harmless(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
