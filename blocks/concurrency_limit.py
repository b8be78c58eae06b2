"""The slot of a run in the concurrency limit of its server, held as long as the run lives.

The launch renews the lease while it lives. Each lease is noted at home, so that after the launch's death the server's
supervisor renews it as long as the run goes on, and gives it back when the run has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.api import Api, status_of, unless
from slurm_ray_flow.core.errors import ServerError, SlurmRayFlowError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.protocol import parse_json

LEASE_SECONDS = 300.0
"""Seconds that a slot stays taken without renewal: enough for a restart of the server or its supervisor."""
RENEW_SECONDS = 60.0
_PATH = "/v2/concurrency_limits"
MISSING, CONFLICT, GONE, REFUSED, LOCKED = 404, 409, 410, 422, 423


@dataclasses.dataclass(frozen=True)
class ConcurrencyLimit:
    """One concurrency limit in Prefect.

    Attributes:
        key: its unique id, the same for all users of the Prefect server.
        name: its name for people.
        slots: the number of all slots.
        active: the number of taken slots.
    """

    key: str
    name: str
    slots: int
    active: int


def read(api: Api, name: str) -> ConcurrencyLimit | None:
    """The limit of this name, if there is one."""
    answer = unless({MISSING}, lambda: api.get(f"{_PATH}/{quote(name, safe='')}"))
    if answer is None:
        return None
    return ConcurrencyLimit(str(answer["id"]), answer["name"], int(answer["limit"]), int(answer["active_slots"]))


def ensure(api: Api, name: str, slots: int) -> ConcurrencyLimit:
    """The limit of this name with so many slots, which is made or changed if needed.

    Raises:
        ServerError: the server can't be reached or refuses it.
    """
    limit = read(api, name)
    if limit is None:
        unless({CONFLICT}, lambda: api.post(f"{_PATH}/", {"name": name, "limit": slots}))  # or somebody was first
        limit = read(api, name)
    if limit is None:
        raise ServerError(f"Prefect made no limit {name!r}", where=api.url, advice="`srf status` shows the server")
    if limit.slots != slots:
        api.patch(f"{_PATH}/{limit.key}", {"limit": slots})
    return dataclasses.replace(limit, slots=slots)


def take(api: Api, name: str, run_id: str = "", seconds: float = LEASE_SECONDS) -> str | None:
    """Take a slot, if one is free.

    Args:
        api: the server.
        name: the limit's name.
        run_id: the flow run that gets the slot.
        seconds: the duration of the lease, unless it is renewed.

    Returns:
        The lease; None if all slots are taken.
    """
    request: dict[str, Any] = {"names": [name], "slots": 1, "mode": "concurrency", "lease_duration": seconds}
    if run_id:
        request["holder"] = {"type": "flow_run", "id": run_id}
    lease = unless({LOCKED, REFUSED}, lambda: api.post(f"{_PATH}/increment-with-lease", request))
    return str(lease["lease_id"]) if lease else None


def renew(api: Api, lease: str, seconds: float = LEASE_SECONDS) -> bool:
    """Renew a slot; False where its lease has ended."""
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


@dataclasses.dataclass(frozen=True)
class HeldSlot:
    """A slot that a run holds.

    Attributes:
        run_id: the run.
        lease: its lease in Prefect.
        limit: the limit's name.
        url: of the API.
        left: whether the launch has left the slot to the supervisor, because it ended, or lost contact with the run.
    """

    run_id: str
    lease: str
    limit: str
    url: str
    left: bool = False


def folder() -> Path:
    """The folder at home with a note of each run's slot."""
    return home() / "slots"


def noted() -> Iterator[HeldSlot]:
    """All slots that runs from this home hold."""
    for path in sorted(folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            yield read_record(HeldSlot, parse_json(path.read_bytes()))


def note(held: HeldSlot) -> None:
    """Note a slot."""
    write_whole(folder() / f"{held.run_id}.json", json.dumps(dataclasses.asdict(held)).encode())


def forget(run_id: str) -> None:
    """Remove the note of a run's slot."""
    (folder() / f"{run_id}.json").unlink(missing_ok=True)


def keep(api: Api, held: HeldSlot) -> HeldSlot:
    """Renew a slot; if its lease has ended, take a free slot.

    Raises:
        ServerError: Prefect does not answer.
    """
    if renew(api, held.lease):
        return held
    if lease := take(api, held.limit, held.run_id):
        held = dataclasses.replace(held, lease=lease)
        note(held)
    return held


def end(api: Api, held: HeldSlot) -> None:
    """Give a slot back.

    Raises:
        ServerError: Prefect does not answer.
    """
    give_back(api, held.lease)
    forget(held.run_id)


class Slot:
    """A slot of this process's launch, renewed by a thread.

    Args:
        api: the server.
        held: the taken slot.
    """

    def __init__(self, api: Api, held: HeldSlot) -> None:
        note(held)
        self._api, self._held = api, held
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"srf-slot-{held.run_id[:8]}", daemon=True)
        self._thread.start()

    def leave(self, run_is_over: bool) -> None:
        """Give the slot back, or leave it to the server's supervisor if the run goes on without this launch."""
        self._ended.set()
        self._thread.join(RENEW_SECONDS)
        with contextlib.suppress(ServerError):  # the supervisor gives back what could not be given back now
            if run_is_over:
                end(self._api, self._held)
                return
        with contextlib.suppress(SlurmRayFlowError, OSError):
            note(dataclasses.replace(self._held, left=True))

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(SlurmRayFlowError, OSError):  # a server that is away costs no run
                self._held = keep(self._api, self._held)
