"""Text from outside, made safe to show: without control characters. Pure functions."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """The text with its control characters spelled out: an escape becomes `\\x1b`. Line breaks stay."""
    if text.isprintable():
        return text
    return "".join(letter if _harmless(letter) else _escaped(letter) for letter in text.replace("\r\n", "\n"))


def encodable(text: str) -> str:
    """The text with surrogates spelled out (bytes of a name that is not UTF-8), so that each encoder takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(file: str) -> str:
    """A path as it can be shown: names that are not UTF-8 have their bytes escaped."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _harmless(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\t" or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
