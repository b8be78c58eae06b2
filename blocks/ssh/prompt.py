"""Asks the user for what only the user knows: a code, a password, a passphrase."""

from __future__ import annotations

import getpass
import os

from slurm_ray_flow.core.errors import LogInFailed


def ask(text: str, seen: bool) -> str:
    """Ask in the terminal.

    Args:
        text: the question.
        seen: whether the answer may be seen while it is typed.

    Raises:
        LogInFailed: there is nobody to ask.
    """
    if not _terminal():
        raise LogInFailed(
            "the server wants to know something, and there is no terminal to ask in",
            where=text.strip(),
            advice="run the program in a terminal, or use a key",
        )
    return _in_terminal(text, seen)


def _terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _in_terminal(text: str, seen: bool) -> str:
    if not seen:
        return getpass.getpass(text)
    with open("/dev/tty", "r+", encoding="utf-8", buffering=1) as terminal:
        terminal.write(text)
        terminal.flush()
        return terminal.readline().rstrip("\n")
