"""Prefect's global concurrency limits: one per shared server, its slots taken by leases.

What a process took that is gone comes back when the lease ends, unless somebody renews it in its stead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from slurm_ray_flow.blocks.server.api import Api, status_of
from slurm_ray_flow.core.errors import ServerError

LEASE_SECONDS = 300.0
"""How long a slot stays taken that nobody renews: long enough for a server's restart, or for its supervisor's."""
RENEW_SECONDS = 60.0
_PATH = "/v2/concurrency_limits"
MISSING, CONFLICT, GONE, REFUSED, LOCKED = 404, 409, 410, 422, 423


@dataclass(frozen=True)
class Limit:
    """One limit as Prefect knows it.

    Attributes:
        key: its id, the same for all who use this Prefect server, and no other one's.
        name: what people see.
        slots: all of them.
        active: those that are taken.
    """

    key: str
    name: str
    slots: int
    active: int


def api_here() -> Api | None:
    """The API that Prefect uses in this context; None where it has none that others can reach."""
    from prefect.settings import get_current_settings

    settings = get_current_settings().api
    if not settings.url:
        return None
    return Api(settings.url.rstrip("/"), settings.auth_string.get_secret_value() if settings.auth_string else "")


def read(api: Api, name: str) -> Limit | None:
    """The limit of this name, if there is one."""
    found = _unless(MISSING, api.get, f"{_PATH}/{quote(name, safe='')}")
    return _limit(found) if found else None


def ensure(api: Api, name: str, slots: int) -> Limit:
    """The limit of this name, made where there is none, with so many slots.

    Raises:
        ServerError: the server can't be reached or refuses it.
    """
    found = read(api, name) or _make(api, name, slots)
    if found.slots == slots:
        return found
    api.patch(f"{_PATH}/{found.key}", {"limit": slots})
    return Limit(found.key, name, slots, found.active)


def _make(api: Api, name: str, slots: int) -> Limit:
    try:
        return _limit({"active_slots": 0, **api.post(f"{_PATH}/", {"name": name, "limit": slots})})
    except ServerError as error:
        if status_of(error) == CONFLICT and (found := read(api, name)):  # somebody was first
            return found
        raise


def take(api: Api, name: str, run_id: str = "", seconds: float = LEASE_SECONDS) -> str | None:
    """Take a slot, if one is free.

    Args:
        api: the server.
        name: the limit.
        run_id: the flow run for which it is.
        seconds: until it comes back, unless it is renewed.

    Returns:
        The lease; None where all slots are taken.
    """
    wanted: dict[str, Any] = {"names": [name], "slots": 1, "mode": "concurrency", "lease_duration": seconds}
    if run_id:
        wanted["holder"] = {"type": "flow_run", "id": run_id}
    try:
        return str(api.post(f"{_PATH}/increment-with-lease", wanted)["lease_id"])
    except ServerError as error:
        if status_of(error) in {LOCKED, REFUSED}:
            return None
        raise


def renew(api: Api, lease: str, seconds: float = LEASE_SECONDS) -> bool:
    """Keep a slot for longer; False where its lease has ended."""
    try:
        api.post(f"{_PATH}/leases/{lease}/renew", {"lease_duration": seconds})
    except ServerError as error:
        if status_of(error) in {GONE, MISSING}:
            return False
        raise
    return True


def give_back(api: Api, lease: str) -> None:
    """Give a slot back; nothing happens where its lease has ended."""
    api.post(f"{_PATH}/decrement-with-lease", {"lease_id": lease})


def _limit(found: dict[str, Any]) -> Limit:
    return Limit(str(found["id"]), found["name"], int(found["limit"]), int(found["active_slots"]))


def _unless(status: int, request: Any, path: str) -> Any:
    try:
        return request(path)
    except ServerError as error:
        if status_of(error) == status:
            return None
        raise
