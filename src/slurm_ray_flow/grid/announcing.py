"""What an engine tells people: events of campaigns by Prefect, in order; and what keeps the engine from its work."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from slurm_ray_flow.blocks.server import ensure_server
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.client import connect, needed_api
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError
from slurm_ray_flow.core.grid.model import CampaignState
from slurm_ray_flow.core.prefect_events import PrefectEvent

if TYPE_CHECKING:
    from slurm_ray_flow.grid.engine import Engine

MOST_HELD = 1000
"""So many events wait for a server that does not answer; the oldest are dropped then, and the log says so."""
PAUSE_SECONDS = 30.0
log = logging.getLogger("slurm_ray_flow.grid")


class Announcer:
    """Sends events while it can; nobody waits for it.

    Args:
        send: sends one event.
    """

    def __init__(self, send: Callable[[PrefectEvent], None]) -> None:
        self._send, self._held = send, collections.deque[PrefectEvent](maxlen=MOST_HELD)
        self._there, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def announce(self, event: PrefectEvent) -> None:
        """Have an event sent soon."""
        with self._lock:
            if len(self._held) == MOST_HELD:
                log.warning("an event for Prefect is dropped: %s", self._held[0].event)
            self._held.append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="srf-grid-events", daemon=True)
                self._thread.start()
        self._there.set()

    def stop(self, within: float = 5.0) -> None:
        """Send what is there, and end."""
        self._stopped.set()
        self._there.set()
        if self._thread is not None:
            self._thread.join(within)

    def _work(self) -> None:
        while self._held or not self._stopped.is_set():
            self._there.wait()
            self._there.clear()
            while self._held:
                event = self._held[0]
                try:
                    self._send(event)
                except Exception as error:  # of whatever kind, the engine goes on without
                    what = error.what if isinstance(error, SlurmRayFlowError) else repr(error)
                    log.warning("an event can't be sent to Prefect yet: %s", what)
                    if self._stopped.wait(PAUSE_SECONDS):
                        return
                    continue
                with self._lock:
                    if self._held and self._held[0] is event:
                        self._held.popleft()


def api_of_server() -> Api:
    """The API of the server that launches use, which is started if it does not run.

    Raises:
        ServerError: it does not answer.
    """
    connect(ensure_server(lambda text: log.info("%s", text)))
    return needed_api()


def send_to_prefect(event: PrefectEvent) -> None:
    """Send an event to the Prefect server that launches use.

    Raises:
        ServerError: it does not answer.
    """
    api_of_server().post("/events", [event.body()])


class HomeTroubles:
    """What keeps parts of an engine, its control or a cluster's thread, from writing at home, such as a full disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._texts: dict[str, str] = {}

    def __contains__(self, part: str) -> bool:
        return part in self._texts

    @property
    def text(self) -> str:
        """One of them; "" for none."""
        return next(iter(list(self._texts.values())), "")

    def note(self, part: str, error: GridError) -> None:
        """Note that a part can't write. It tries again."""
        if part not in self._texts:
            log.error("the engine waits: %s", error)
        self._texts[part] = f"{error.what} ({error.where})" if error.where else error.what

    def end(self, part: str) -> None:
        """Note that a part can write again; the campaigns that waited for it have an event.

        Raises:
            GridError: it can't.
        """
        if (text := self._texts.get(part)) is None:
            return
        for campaign in self._engine.store.campaigns([CampaignState.ACTIVE]):
            self._engine.note(campaign.id, part, "warning", "home", "", f"the engine had to wait: {text}")
        del self._texts[part]
        log.info("the engine goes on, which had to wait: %s", text)

    def forget(self, part: str) -> None:
        """Note the end of a part, which has no trouble any more."""
        self._texts.pop(part, None)
