"""Authentication in OpenSSH's order: keys, questions (keyboard-interactive), password.

A server may want several steps.
"""

from __future__ import annotations

import contextlib
import contextvars
import getpass
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks.server.client import in_flow_run
from slurm_ray_flow.blocks.ssh import open_connection
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint
from slurm_ray_flow.blocks.ssh.open_connection import (
    Closed,
    Denied,
    Dismissed,
    Locked,
    OpenConnection,
    OpenConnectionError,
)
from slurm_ray_flow.core.errors import LogInFailed
from slurm_ray_flow.core.text import plain

PREFECT_SECONDS = 100
"""Seconds for an answer in Prefect's UI: servers close a log-in after two minutes."""
_PASSWORD = re.compile(r"pass\s*word|mot de passe|passwort", re.IGNORECASE)
_LASTING = re.compile(f"passphrase|{_PASSWORD.pattern}", re.IGNORECASE)
"""A question for what must not be typed into Prefect's form: Prefect stores it."""


class Unasked:
    """Whether a server's question was left unasked.

    Attributes:
        wanted: whether a server wanted to know something.
    """

    wanted = False


_nobody: contextvars.ContextVar[Unasked | None] = contextvars.ContextVar("slurm_ray_flow_nobody_is_asked", default=None)


@contextlib.contextmanager
def asking_nobody() -> Iterator[Unasked]:
    """Ask the user nothing inside the block: a log-in with a question fails there."""
    unasked = Unasked()
    token = _nobody.set(unasked)
    try:
        yield unasked
    finally:
        _nobody.reset(token)


def unasked() -> bool:
    """Whether this context has failed at a question that the user could have answered."""
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
    if _LASTING.search(text) or not in_flow_run():
        raise LogInFailed(
            "the server wants to know something, and there is no terminal to ask in",
            where=text.strip(),
            advice="run the program in a terminal; or use a key, or give a password in the block"
            + (f" or in ${variable}" if variable else ""),
        )
    return _in_prefect(text)


def agreed(text: str) -> bool:
    """Whether the user types yes in the terminal; False without a terminal, or where no question is allowed."""
    return _nobody.get() is None and terminal() and _in_terminal(text, seen=True).strip().lower() == "yes"


def terminal() -> bool:
    """Whether there is a terminal for questions."""
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


Prompt = Callable[[str, bool], str]
"""A function that asks the user: the text, and whether the answer may be seen. Raises LogInFailed where it can't."""

_ORDER = ("publickey", "keyboard-interactive", "password")
_TYPED = 3
_STEPS = 6
_LONGEST = 4000
"""The most letters of a server's question that are shown."""


class Secrets:
    """The secrets of the user on one server; typed ones are kept for a reconnection."""

    def __init__(self, password: str, prompt: Prompt, password_variable: str) -> None:
        self.password, self.prompt, self.password_variable = password, prompt, password_variable
        self.passphrases: dict[Path, str] = {}

    def __repr__(self) -> str:
        return "Secrets(...)"


def log_in(server: OpenConnection, endpoint: Endpoint, secrets: Secrets, again: bool = False) -> None:
    """Authenticate on a server.

    Args:
        again: it has let us in before. Then a connection that it closes is a lost one: it may be just starting.

    Raises:
        LogInFailed: the server does not believe it, or nobody can be asked what it wants to know.
        WireError: the connection was lost.
    """
    attempt = _Attempt(server, endpoint, secrets)
    methods = server.methods(endpoint.user)
    for _ in range(_STEPS):
        if not methods:
            return
        try:
            methods = attempt.step(methods)
        except Dismissed as error:
            raise attempt.failed(methods, f": {error}") from None
        except Closed as error:
            if again:
                raise
            raise attempt.closed(str(error)) from None
        except LogInFailed as error:
            raise attempt.with_tried(error) from None
    raise attempt.failed(methods)


class _Attempt:
    def __init__(self, server: OpenConnection, endpoint: Endpoint, secrets: Secrets) -> None:
        self._server, self._endpoint, self._secrets = server, endpoint, secrets
        self._used: set[bytes] = set()
        self._tried: list[str] = []
        self._password_given = False

    def step(self, methods: Sequence[str]) -> Sequence[str]:
        """Take one step; gives the methods of the next one, none after success."""
        proofs = {"publickey": self._keys, "keyboard-interactive": self._questions, "password": self._passwords}
        for method in _ORDER:
            if method not in methods:
                continue
            for prove in proofs[method]():
                with contextlib.suppress(Denied):
                    return prove()
        raise self.failed(methods)

    def with_tried(self, error: LogInFailed) -> LogInFailed:
        """The error with the keys that were tried: the real cause may be a refused or locked key."""
        tried = "; ".join(dict.fromkeys(self._tried))
        if not tried or tried in error.where:
            return error
        return LogInFailed(error.what, where=f"{error.where} (tried: {tried})", advice=error.advice)

    def closed(self, why: str) -> LogInFailed:
        return LogInFailed(
            f"{self._endpoint.name} does not let {self._endpoint.user} in: {plain(why)}",
            where=f"{self._endpoint} (tried: {'; '.join(dict.fromkeys(self._tried))})",
            advice=f"try `{self._endpoint.by_hand}`. The account may be locked or have expired, or nobody may log in "
            "just now: ask the people who run the server",
        )

    def failed(self, methods: Sequence[str], message: str = "") -> LogInFailed:
        tried = "; ".join(dict.fromkeys(self._tried)) or "nothing"
        variable, user, name = self._secrets.password_variable, self._endpoint.user, self._endpoint.name
        given = "; the password or the code that was given was not taken" if self._password_given else ""
        if any(method.startswith("gssapi") for method in methods):
            given += "; tickets of Kerberos (GSSAPI) are not used here"
        return LogInFailed(
            f"{name} does not let {user} in: it takes {', '.join(methods)}{given}{message}",
            where=f"{self._endpoint} (tried: {tried})",
            advice=f"try `{self._endpoint.by_hand}`; name the right user and key_file in the block, "
            f"or give {'the right' if given else 'a'} password in the block or in ${variable}",
        )

    # ---- keys

    def _keys(self) -> Iterator[Callable[[], Sequence[str]]]:
        for described, key in self._found_keys():
            data = open_connection.public_bytes(key)
            if data not in self._used:
                self._used.add(data)
                self._tried.append(described)
                yield lambda key=key: self._server.log_in_by_key(self._endpoint.user, key)  # type: ignore[misc]

    def _found_keys(self) -> Iterator[tuple[str, Any]]:
        held = open_connection.keys_from_agent(self._endpoint.agent)
        named = {_public_of(path) for path in self._endpoint.key_files}
        yield from ((f"agent key {key.get_name()}", key) for key in held if open_connection.public_bytes(key) in named)
        if not self._endpoint.only_key_files:
            yield from ((f"agent key {key.get_name()}", key) for key in held)
        locked = []
        for path in self._endpoint.key_files:
            if not path.exists():
                self._missing(path)
                continue
            try:
                yield f"key {path}", open_connection.key_from_file(path, self._secrets.passphrases.get(path))
            except Locked:
                locked.append(path)
            except OpenConnectionError as error:
                self._tried.append(str(error))
        for path in locked:
            yield from self._unlocked(path)

    def _missing(self, path: Path) -> None:
        if self._endpoint.keys_named:
            raise LogInFailed("the key file is not there", where=str(path), advice="name another one in the block")

    def _unlocked(self, path: Path) -> Iterator[tuple[str, Any]]:
        """A key with a passphrase, which is asked for after all other keys have failed."""
        if self._secrets.password and not self._endpoint.keys_named:
            self._tried.append(f"key {path} not, it has a passphrase")
            return
        for _ in range(_TYPED):
            try:
                passphrase = self._secrets.prompt(f"Passphrase of {path}: ", False)
            except LogInFailed:
                self._tried.append(f"key {path} not, nobody can be asked for its passphrase")
                return
            with contextlib.suppress(Locked):
                key = open_connection.key_from_file(path, passphrase)
                self._secrets.passphrases[path] = passphrase
                yield f"key {path}", key
                return
        self._tried.append(f"key {path} not, its passphrase was wrong")

    # ---- questions

    def _questions(self) -> Iterator[Callable[[], Sequence[str]]]:
        for _ in range(_TYPED):
            before = self._password_given
            self._tried.append("keyboard-interactive")
            yield lambda: self._server.log_in_by_questions(self._endpoint.user, self._answers)
            if self._password_given and not before:
                return  # a stored password that is wrong is not sent again: sites block accounts for that

    def _answers(self, title: str, instructions: str, questions: Sequence[tuple[str, bool]]) -> Sequence[str]:
        intro = "\n".join(text.strip() for text in (title, instructions) if text.strip())
        return [self._answer(f"{intro}\n{text}" if intro else text, seen) for text, seen in questions]

    def _answer(self, text: str, seen: bool) -> str:
        if self._secrets.password and not seen and not self._password_given and _PASSWORD.search(text):
            self._password_given = True
            return self._secrets.password
        return self._secrets.prompt(plain(f"{self._endpoint}: {text}"[:_LONGEST]), seen)

    # ---- password

    def _passwords(self) -> Iterator[Callable[[], Sequence[str]]]:
        self._tried.append("password")
        if self._secrets.password:
            if not self._password_given:
                self._password_given = True
                yield lambda: self._by_password(self._secrets.password)
            return
        for _ in range(_TYPED):
            typed = self._secrets.prompt(f"Password of {self._endpoint}: ", False)
            yield lambda typed=typed: self._by_password(typed)  # type: ignore[misc]

    def _by_password(self, password: str) -> Sequence[str]:
        rest = self._server.log_in_by_password(self._endpoint.user, password)
        self._secrets.password = password
        return rest


def _public_of(path: Path) -> bytes:
    import base64

    with contextlib.suppress(OSError, ValueError, IndexError):
        return base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    return b""
