"""Authentication in OpenSSH's order: keys, questions (keyboard-interactive), password; a server may want several."""

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
    """The questions of servers in a block of `asking_nobody`.

    Attributes:
        wanted: whether a server has asked a question.
    """

    wanted = False


_silenced: contextvars.ContextVar[Unasked | None] = contextvars.ContextVar(
    "slurm_ray_flow_nobody_is_asked", default=None
)


@contextlib.contextmanager
def asking_nobody() -> Iterator[Unasked]:
    """Ask the user no question inside the block: a log-in with a question fails there."""
    unasked = Unasked()
    token = _silenced.set(unasked)
    try:
        yield unasked
    finally:
        _silenced.reset(token)


def unasked() -> bool:
    """Whether a log-in has failed in a block of `asking_nobody` at a question that the user could answer."""
    return (nobody := _silenced.get()) is not None and nobody.wanted


def ask(text: str, seen: bool, variable: str = "") -> str:
    """Ask in the terminal; without a terminal pause the flow run, and ask for a one-time code in Prefect's UI.

    Args:
        text: the question.
        seen: whether the terminal shows the answer while it is typed.
        variable: the environment variable for the password.

    Raises:
        LogInFailed: nobody can be asked, or nobody answers.
    """
    if nobody := _silenced.get():
        nobody.wanted = True
        raise LogInFailed("the server wants to know something, and you are not asked just now", where=text.strip())
    if terminal():
        return _ask_in_terminal(text, seen)
    if _LASTING.search(text) or not in_flow_run():
        raise LogInFailed(
            "the server wants to know something, and there is no terminal to ask in",
            where=text.strip(),
            advice="run the program in a terminal; or use a key, or give a password in the block"
            + (f" or in ${variable}" if variable else ""),
        )
    return _ask_in_prefect(text)


def agreed(text: str) -> bool:
    """Whether the user types yes in the terminal; False without a terminal, or where no question is allowed."""
    return _silenced.get() is None and terminal() and _ask_in_terminal(text, seen=True).strip().lower() == "yes"


def terminal() -> bool:
    """Whether this process has a terminal for questions."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _ask_in_terminal(text: str, seen: bool) -> str:
    if not seen:
        return getpass.getpass(text)
    with open("/dev/tty", "r+b", buffering=0) as terminal:
        terminal.write(text.encode())
        return terminal.readline().decode(errors="replace").rstrip("\n")


def _ask_in_prefect(text: str) -> str:
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
"""A function that asks the user: the text, and whether the terminal shows the answer. May raise LogInFailed."""

_ORDER = ("publickey", "keyboard-interactive", "password")
_MOST_ATTEMPTS = 3
_MOST_STEPS = 6
_LONGEST = 4000
"""The most letters of a server's question that are shown."""


class Secrets:
    """The secrets of the user on one server; typed ones are kept for a reconnection."""

    def __init__(self, password: str, prompt: Prompt, password_variable: str) -> None:
        self.password, self.prompt, self.password_variable = password, prompt, password_variable
        self.passphrases: dict[Path, str] = {}

    def __repr__(self) -> str:
        return "Secrets(...)"


def log_in(server: OpenConnection, endpoint: Endpoint, secrets: Secrets, reconnecting: bool = False) -> None:
    """Authenticate on a server.

    Args:
        reconnecting: whether an earlier log-in has succeeded; then a closed connection counts as lost.

    Raises:
        LogInFailed: the server refuses the log-in, or nobody can answer its questions.
        OpenConnectionError: the connection was lost.
    """
    attempt = _Attempt(server, endpoint, secrets)
    methods = server.methods(endpoint.user)
    for _ in range(_MOST_STEPS):
        if not methods:
            return
        try:
            methods = attempt.step(methods)
        except Dismissed as error:
            raise attempt.failed(methods, f": {error}") from None
        except Closed as error:
            if reconnecting:
                raise
            raise attempt.closed(str(error)) from None
        except LogInFailed as error:
            raise attempt.with_tried_keys(error) from None
    raise attempt.failed(methods)


class _Attempt:
    def __init__(self, server: OpenConnection, endpoint: Endpoint, secrets: Secrets) -> None:
        self._server, self._endpoint, self._secrets = server, endpoint, secrets
        self._used: set[bytes] = set()
        self._tried: list[str] = []
        self._password_given = False

    def step(self, methods: Sequence[str]) -> Sequence[str]:
        """Do one step of the log-in; gives the methods for the next step, none after the last one."""
        proofs = {"publickey": self._keys, "keyboard-interactive": self._questions, "password": self._passwords}
        for method in _ORDER:
            if method not in methods:
                continue
            for prove in proofs[method]():
                with contextlib.suppress(Denied):
                    return prove()
        raise self.failed(methods)

    def with_tried_keys(self, error: LogInFailed) -> LogInFailed:
        """The error with the tried keys, because a refused or locked key may be its cause."""
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
        hint = "; the password or the code that was given was not taken" if self._password_given else ""
        if any(method.startswith("gssapi") for method in methods):
            hint += "; tickets of Kerberos (GSSAPI) are not used here"
        return LogInFailed(
            f"{name} does not let {user} in: it takes {', '.join(methods)}{hint}{message}",
            where=f"{self._endpoint} (tried: {tried})",
            advice=f"try `{self._endpoint.by_hand}`; name the right user and key_file in the block, "
            f"or give {'the right' if hint else 'a'} password in the block or in ${variable}",
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
        agent_keys = open_connection.keys_from_agent(self._endpoint.agent)
        named_keys = {_public_of(path) for path in self._endpoint.key_files}
        named_first = [key for key in agent_keys if open_connection.public_bytes(key) in named_keys]
        for key in (*named_first, *([] if self._endpoint.only_key_files else agent_keys)):
            yield f"agent key {key.get_name()}", key
        locked = []
        for path in self._endpoint.key_files:
            if not path.exists():
                self._refuse_missing_key(path)
                continue
            try:
                yield f"key {path}", open_connection.key_from_file(path, self._secrets.passphrases.get(path))
            except Locked:
                locked.append(path)
            except OpenConnectionError as error:
                self._tried.append(str(error))
        for path in locked:
            yield from self._unlock(path)

    def _refuse_missing_key(self, path: Path) -> None:
        if self._endpoint.keys_named:
            raise LogInFailed("the key file is not there", where=str(path), advice="name another one in the block")

    def _unlock(self, path: Path) -> Iterator[tuple[str, Any]]:
        """A key with a passphrase; the user is asked after all other keys have failed."""
        if self._secrets.password and not self._endpoint.keys_named:
            self._tried.append(f"key {path} not, it has a passphrase")
            return
        for _ in range(_MOST_ATTEMPTS):
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
        for _ in range(_MOST_ATTEMPTS):
            given_before = self._password_given
            self._tried.append("keyboard-interactive")
            yield lambda: self._server.log_in_by_questions(self._endpoint.user, self._answers)
            if self._password_given and not given_before:
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
        for _ in range(_MOST_ATTEMPTS):
            typed = self._secrets.prompt(f"Password of {self._endpoint}: ", False)
            yield lambda typed=typed: self._by_password(typed)  # type: ignore[misc]

    def _by_password(self, password: str) -> Sequence[str]:
        methods = self._server.log_in_by_password(self._endpoint.user, password)
        self._secrets.password = password
        return methods


def _public_of(path: Path) -> bytes:
    import base64

    with contextlib.suppress(OSError, ValueError, IndexError):
        return base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    return b""
