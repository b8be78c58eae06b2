"""Settings that make Prefect in this process use the server."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from slurm_ray_flow.blocks.processes import Process, alive
from slurm_ray_flow.blocks.server.address import HOST, ServerAddress, read_state, serving
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, server_files
from slurm_ray_flow.core.errors import ServerError, SlurmRayFlowError

_lock = threading.Lock()
_connected_to: set[str] = set()  # addresses that `connect` has set, and not the user
_listeners: dict[int, tuple[Process, ServerFiles]] = {}  # our servers that this process has used, by their ports


def client_settings(address: ServerAddress) -> dict[str, str]:
    """The settings by their names that make a Prefect client use the server; none for one the user configured."""
    if not address.owned:
        return {}
    return {"PREFECT_API_URL": address.url, "PREFECT_API_AUTH_STRING": auth_string(server_files())}


def configured_url() -> str | None:
    """The address of the API that the user configured by variable, profile or prefect.toml; None for none."""
    if chosen := os.environ.get("PREFECT_API_URL"):
        return chosen
    if not _needs_prefect():
        return None
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    return None if url is None or url in _connected_to else url


def api_in_use() -> Api | None:
    """The API that this process, or its flow run, uses; None without a configured or running server."""
    if _needs_prefect():
        if api := _api_of_prefect():
            return api
    elif url := os.environ.get("PREFECT_API_URL"):
        key = os.environ.get("PREFECT_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return Api(url.rstrip("/"), os.environ.get("PREFECT_API_AUTH_STRING", ""), headers)
    state = read_state(server_files())
    return Api(state.url, auth_string(server_files())) if state is not None and serving(state) else None


def needed_api() -> Api:
    """The API that this process uses.

    Raises:
        ServerError: no server is known that listens.
    """
    api = api_in_use()
    if api is None:
        raise no_answer("nothing listens there")
    return api


def in_flow_run() -> bool:
    """Whether this is a flow run of Prefect's."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def _api_of_prefect() -> Api | None:
    from prefect.context import FlowRunContext
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:  # a server that Prefect has started for this flow run alone
        url = getattr(getattr(FlowRunContext.get(), "client", None), "api_url", None)
        return Api(str(url).rstrip("/")) if url else None
    headers = dict(settings.client.custom_headers)
    if settings.api.key:
        headers["Authorization"] = f"Bearer {settings.api.key.get_secret_value()}"
    tls = None
    if settings.api.tls_insecure_skip_verify:
        tls = ssl._create_unverified_context()  # noqa: S323 - the user's own setting
    elif settings.api.ssl_cert_file:
        tls = ssl.create_default_context(cafile=settings.api.ssl_cert_file)
    auth = settings.api.auth_string.get_secret_value() if settings.api.auth_string else ""
    return Api(settings.api.url.rstrip("/"), auth, headers, tls)


_READ_WITHOUT_PREFECT = {"PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"}


def _needs_prefect() -> bool:
    """Whether the configured API can only be read by Prefect's own settings, whose import takes seconds."""
    if "prefect" in sys.modules:
        return True
    variables = {name.upper() for name in os.environ}
    if any(name.startswith(("PREFECT_API_", "PREFECT_CLIENT_")) for name in variables - _READ_WITHOUT_PREFECT):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    files = ((profiles, "prefect_api_"), (".env", "prefect"), ("prefect.toml", ""), ("pyproject.toml", "tool.prefect"))
    return any(_contains(*file) for file in files)


def _contains(path: Path | str, word: str) -> bool:
    """Whether a file contains a word; True for an unreadable file."""
    try:
        return word in Path(path).read_text(errors="replace").lower()
    except FileNotFoundError:
        return False
    except OSError:
        return True


def server_error(error: BaseException) -> ServerError | None:
    """The error about the server for an exception of Prefect's client; None for another exception."""
    from httpx import HTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    if cause is None or isinstance(error, SlurmRayFlowError):
        return None
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return no_answer(f"it answers {status}" if status else str(cause) or type(cause).__name__, status)


def no_answer(why: str, status: int | None = None) -> ServerError:
    """The error for a server that is missing, or does not answer as Prefect's does."""
    url = urlsplit(configured_url() or "")
    if not url.geturl():
        advice = "`srf status` shows whether it runs, `srf up` starts it"
        return ServerError(f"the Prefect server gave no useful answer: {why}", advice=advice)
    where = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()  # without a password
    advice = "start it, or see that PREFECT_API_URL leads to its API; where that is not set, srf starts its own"
    if status in {401, 403}:
        advice = "set PREFECT_API_AUTH_STRING to its user:password, or PREFECT_API_KEY to your key"
    return ServerError(f"the Prefect server that you configured can't be used: {why}", where=where, advice=advice)


def ui_url_of(api_url: str) -> str:
    """The address of a server's UI from that of its API."""
    parts = urlsplit(api_url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/api"), "", ""))


def connect(address: ServerAddress) -> None:
    """Make Prefect use the server in all threads of this process from now on.

    A server that the user configured, or a block of `temporary_settings`, stays in use. The environment of the process
    is not changed, so that the password does not reach programs that the user starts.
    """
    from prefect import context

    if not address.owned:
        return
    auth = auth_string(server_files())
    pass_by_proxies()
    _guard_port(address)
    with _lock:
        current = context.GLOBAL_SETTINGS_CONTEXT
        earlier_url = current.settings.api.url
        if earlier_url == address.url:
            return
        updated = current.settings.copy_with_update(updates={"api.url": address.url, "api.auth_string": auth})
        _connected_to.add(address.url)
        context.GLOBAL_SETTINGS_CONTEXT = context.SettingsContext(profile=current.profile, settings=updated)
        if earlier_url:
            _end_services()


def _guard_port(address: ServerAddress) -> None:
    """Refuse connections of this process to the server's port while the server is dead: another user may listen there.

    Prefect's client sends the password with each request, and repeats requests without an answer.
    """
    if address.process is None:
        return
    with _lock:
        if not _listeners:
            sys.addaudithook(_refuse_dead_server)
        _listeners[urlsplit(address.url).port or 0] = address.process, server_files()


def _refuse_dead_server(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not isinstance(arguments[1], tuple) or arguments[1][:1] != (HOST,):
        return
    port = arguments[1][1]
    if port not in _listeners or alive(_listeners[port][0]):
        return
    state = read_state(files := _listeners[port][1])
    if state is None or state.port != port or not alive(state.server):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the Prefect server has ended")
    _listeners[port] = state.server, files  # it was started again


def _end_services() -> None:
    """End Prefect's service for events after it has sent its events; a new one then uses the new server.

    Without this the service stays with the server with which it began.
    """
    from prefect.events.worker import EventsWorker

    # In a thread, since within an event loop Prefect's function returns an awaitable.
    thread = threading.Thread(target=EventsWorker.drain_all, kwargs={"timeout": 0.0})
    thread.start()
    thread.join()


def pass_by_proxies() -> None:
    """Exclude loopback from proxies, which can't reach it: Prefect's events would be lost, with a warning each.

    The user's own settings of proxies stay; loopback is added to the hosts without a proxy.
    """
    if not any(name.lower() in _PROXIES for name in os.environ):
        return
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in no_proxy.split(",") if host.strip()]
    missing = [host for host in ("127.0.0.1", "localhost") if host not in hosts]
    if missing and "*" not in hosts:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*hosts, *missing])


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy")


@contextlib.contextmanager
def connected(address: ServerAddress) -> Iterator[None]:
    """Make Prefect use the server in this block, and after it in this process (logs and events are sent late).

    This holds also inside an outer block of `temporary_settings`.
    """
    from prefect.settings import get_current_settings, temporary_settings

    connect(address)
    if not address.owned or get_current_settings().api.url == address.url:
        yield
        return
    with temporary_settings({"api.url": address.url, "api.auth_string": auth_string(server_files())}):
        yield
