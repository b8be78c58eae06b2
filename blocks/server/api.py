"""A small client of Prefect's API: an import of Prefect's own costs two seconds and 150 MB."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from slurm_ray_flow.core.errors import ServerError

T = TypeVar("T")
TIMEOUT = 20.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")
NOT_FOUND = 404
BUSY, BUSY_PAUSES = 503, (0.05, 0.1, 0.2)
"""Prefect's answer when its SQLite database is locked for a moment, and the seconds before each repetition."""


@dataclass(frozen=True)
class Api:
    """Prefect's API at `url`.

    Attributes:
        auth: "user:password", or "" for none.
        headers: further headers of each request, such as that of a key.
        tls: how to verify the server; None for Python's own way.
    """

    url: str
    auth: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def get(self, path: str) -> Any:
        """The answer to GET, read from JSON.

        Raises:
            ServerError: no answer, or one that says no.
        """
        return self._ask("GET", path, None)

    def find(self, path: str) -> Any:
        """The answer to GET; None for Prefect's own answer 404.

        Raises:
            ServerError: no answer, or one that says no.
        """
        try:
            return self.get(path)
        except ServerError as error:
            cause = error.__cause__
            is_prefect = "json" in getattr(cause, "headers", {}).get("content-type", "")
            if status_of(error) == NOT_FOUND and is_prefect:
                return None
            raise

    def post(self, path: str, body: object) -> Any:
        """The answer to POST of `body` as JSON, read from JSON; None where it is empty.

        Raises:
            ServerError: no answer, or one that says no.
        """
        return self._ask("POST", path, json.dumps(body).encode())

    def patch(self, path: str, body: object) -> None:
        """Send a PATCH request.

        Raises:
            ServerError: no answer, or one that says no.
        """
        self._ask("PATCH", path, json.dumps(body).encode())

    def put(self, path: str, body: object) -> None:
        """Send a PUT request.

        Raises:
            ServerError: no answer, or one that says no.
        """
        self._ask("PUT", path, json.dumps(body).encode())

    def healthy(self) -> bool:
        """Whether the server answers that it is healthy."""
        try:
            return self.get("/health") is True
        except ServerError:
            return False

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=self._headers())  # noqa: S310 - http(s) of our settings
        pauses = iter(BUSY_PAUSES)
        while True:
            try:
                with self._opener().open(request, timeout=TIMEOUT) as answer:
                    content = answer.read()
                return json.loads(content) if content else None
            except (OSError, ValueError) as problem:
                pause = next(pauses, None) if getattr(problem, "code", None) == BUSY else None
                if pause is None:
                    raise _no_answer(self.url + path, problem) from problem
                time.sleep(pause)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", **self.headers}
        if self.auth:
            headers["Authorization"] = "Basic " + base64.b64encode(self.auth.encode()).decode()
        return headers

    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=self.tls)]
        if urlsplit(self.url).hostname in LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy of the site has no way there
        return urllib.request.build_opener(*handlers)


def status_of(error: ServerError) -> int | None:
    """The HTTP status of a refusal; None where there was no answer."""
    cause = error.__cause__
    return cause.code if isinstance(cause, urllib.error.HTTPError) else None


def unless(statuses: set[int], request: Callable[[], T]) -> T | None:
    """The result of a request; None for an answer with one of these statuses."""
    try:
        return request()
    except ServerError as error:
        if status_of(error) in statuses:
            return None
        raise


def _no_answer(where: str, problem: Exception) -> ServerError:
    detail = ""
    if isinstance(problem, urllib.error.HTTPError):
        detail = problem.read().decode(errors="replace")[:500]
    return ServerError(
        f"The Prefect server gave no useful answer: {problem} {detail}".strip(),
        where=where,
        advice="`srf status` shows whether it runs, `srf up` starts it.",
    )
