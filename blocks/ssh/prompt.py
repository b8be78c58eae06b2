"""Asks the user for what only the user knows: a code, a password, a passphrase."""

from __future__ import annotations

import contextlib
import contextvars
import getpass
import os
from collections.abc import Iterator

from slurm_ray_flow.core.errors import LogInFailed

PREFECT_SECONDS = 100
"""Servers close a log-in that takes longer than two minutes."""


class Unasked:
    """What the user was not asked for.

    Attributes:
        wanted: whether a server wanted to know something.
    """

    wanted = False


_nobody: contextvars.ContextVar[Unasked | None] = contextvars.ContextVar("slurm_ray_flow_nobody_is_asked", default=None)


@contextlib.contextmanager
def asking_nobody() -> Iterator[Unasked]:
    """What is done in this block asks the user for nothing: where a server wants to know something, that is its end."""
    unasked = Unasked()
    token = _nobody.set(unasked)
    try:
        yield unasked
    finally:
        _nobody.reset(token)


def unasked() -> bool:
    """Whether this context has failed at a question that the user could answer in another one."""
    return (nobody := _nobody.get()) is not None and nobody.wanted


def ask(text: str, seen: bool, variable: str = "") -> str:
    """Ask in the terminal; where there is none, ask for a one-time code in Prefect's UI, where the run is paused.

    Args:
        text: the question.
        seen: whether the answer may be seen while it is typed.
        variable: the environment variable that could have held a password.

    Raises:
        LogInFailed: there is nobody to ask, or nobody answers.
    """
    if nobody := _nobody.get():
        nobody.wanted = True
        raise LogInFailed("the server wants to know something, and you are not asked just now", where=text.strip())
    if terminal():
        return _in_terminal(text, seen)
    if _asks_for_lasting(text) or not _in_flow_run():
        raise LogInFailed(
            "the server wants to know something, and there is no terminal to ask in",
            where=text.strip(),
            advice="run the program in a terminal; or use a key, or give a password in the block"
            + (f" or in ${variable}" if variable else ""),
        )
    return _in_prefect(text)


def agreed(text: str) -> bool:
    """Whether somebody types yes in the terminal; False where there is none, and where nobody is to be asked."""
    return _nobody.get() is None and terminal() and _in_terminal(text, seen=True).strip().lower() == "yes"


def terminal() -> bool:
    """Whether there is one to ask in."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _in_terminal(text: str, seen: bool) -> str:
    if not seen:
        return getpass.getpass(text)
    with open("/dev/tty", "r+b", buffering=0) as terminal:
        terminal.write(text.encode())
        return terminal.readline().decode(errors="replace").rstrip("\n")


def _asks_for_lasting(text: str) -> bool:
    """Prefect keeps what is typed into its form: good for a code that is void afterwards, not for a password."""
    return any(word in text.lower() for word in ("passphrase", "password", "mot de passe", "passwort"))


def _in_flow_run() -> bool:
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None


def _in_prefect(text: str) -> str:
    from prefect.exceptions import FlowPauseTimeout
    from prefect.flow_runs import pause_flow_run
    from prefect.input import RunInput

    class LogInCode(RunInput):
        answer: str

    form = LogInCode.with_initial_data(description=f"{text.strip()} (within {PREFECT_SECONDS} s)")
    try:
        return pause_flow_run(wait_for_input=form, timeout=PREFECT_SECONDS, poll_interval=2).answer
    except FlowPauseTimeout:
        raise LogInFailed(
            f"nobody has answered within {PREFECT_SECONDS} s", where=text.strip(), advice="resume the run in the UI"
        ) from None
