"""The slot of a run in its server's limit: kept while the run lives, whoever of ours is there to keep it.

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

from slurm_ray_flow.blocks import limits
from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.errors import ServerError, SlurmRayFlowError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.protocol import parse_json


@dataclasses.dataclass(frozen=True)
class Held:
    """A slot that a run holds.

    Attributes:
        run_id: the run.
        lease: its lease in Prefect.
        limit: the limit's name.
        url: of the API.
        left: the launch has ended, or is cut off from the run, and leaves the slot to others to keep.
    """

    run_id: str
    lease: str
    limit: str
    url: str
    left: bool = False


def folder() -> Path:
    """Where slots are noted, a file for each run."""
    return home() / "slots"


def noted() -> Iterator[Held]:
    """All slots that runs from this home hold."""
    for path in sorted(folder().glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            yield read_record(Held, parse_json(path.read_bytes()))


def note(held: Held) -> None:
    """Remember a slot."""
    write_whole(folder() / f"{held.run_id}.json", json.dumps(dataclasses.asdict(held)).encode())


def forget(run_id: str) -> None:
    """Forget a run's slot."""
    (folder() / f"{run_id}.json").unlink(missing_ok=True)


def keep(api: Api, held: Held) -> Held:
    """Renew a slot; where its lease has ended in spite of all, take a new one if there is one.

    Raises:
        ServerError: Prefect does not answer.
    """
    if limits.renew(api, held.lease):
        return held
    if lease := limits.take(api, held.limit, held.run_id):
        held = dataclasses.replace(held, lease=lease)
        note(held)
    return held


def end(api: Api, held: Held) -> None:
    """Give a slot back.

    Raises:
        ServerError: Prefect does not answer.
    """
    limits.give_back(api, held.lease)
    forget(held.run_id)


class Slot:
    """A slot of this process's launch, renewed by a thread.

    Args:
        api: the server.
        held: what was taken.
    """

    def __init__(self, api: Api, held: Held) -> None:
        note(held)
        self._api, self._held = api, held
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"srf-slot-{held.run_id[:8]}", daemon=True)
        self._thread.start()

    def leave(self, run_is_over: bool) -> None:
        """Give the slot back; or, where the run goes on without this launch, leave it to the server's supervisor."""
        self._over.set()
        self._thread.join(limits.RENEW_SECONDS)
        with contextlib.suppress(ServerError):  # the supervisor gives back what could not be given back now
            if run_is_over:
                end(self._api, self._held)
                return
        with contextlib.suppress(SlurmRayFlowError, OSError):
            note(dataclasses.replace(self._held, left=True))

    def _renew(self) -> None:
        while not self._over.wait(limits.RENEW_SECONDS):
            with contextlib.suppress(SlurmRayFlowError, OSError):  # a server that is away costs no run
                self._held = keep(self._api, self._held)
