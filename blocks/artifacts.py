"""Artifacts of a flow run, sent by a thread of their own: no launch waits for them, or fails by them."""

from __future__ import annotations

import atexit
import json
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.errors import ServerError

BEGIN_SECONDS = 2.0
"""Seconds after which a launch shows its first artifacts, even if the function has not begun."""
PACE_SECONDS, LONGEST_PACE = 5.0, 60.0
"""The least seconds between two changes of an artifact, and their bound in long runs."""
MOST_FAILURES = 3
"""The number of refusals after which no artifact is sent any more."""
LEAVE_SECONDS = 5.0
"""Seconds that the end of the process waits for artifacts that are still to be sent."""


@dataclass(frozen=True)
class Artifact:
    """An artifact as the API takes it; one of the same key in the same flow run is changed in place."""

    key: str
    type: str
    data: Any
    description: str
    task_run_id: str | None = None


class Artifacts:
    """The artifacts of one flow run. `show` returns at once; the newest of each key counts."""

    def __init__(self, api: Api | None, flow_run_id: str) -> None:
        self._api, self._flow_run_id = api, flow_run_id
        self._newest: dict[str, Artifact] = {}
        self._sent: dict[str, Artifact] = {}
        self._ids: dict[str, str] = {}
        self._tags: list[str] | None = None
        self._changed = threading.Condition()
        self._open = self._closed = False
        self._failures, self._due, self._again = 0, 0.0, 0.0
        self._thread: threading.Thread | None = None
        if api is not None:
            self._thread = threading.Thread(target=self._work, name="srf-artifacts", daemon=True)
            self._thread.start()
            _under_way.add(self)

    def show(self, artifact: Artifact) -> None:
        """Send an artifact, or its newer state."""
        with self._changed:
            self._newest[artifact.key] = artifact
            self._changed.notify()

    def tag(self, tags: set[str]) -> None:
        """Give the flow run these tags and no others."""
        with self._changed:
            self._tags = sorted(tags)
            self._changed.notify()

    def open(self) -> None:
        """Send from now on: the launch has made its own requests."""
        with self._changed:
            self._open = True
            self._changed.notify()

    def close(self) -> None:
        """Send the rest now, in the background: the launch has ended."""
        with self._changed:
            self._open = self._closed = True
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Wait until all is sent, at most so many seconds."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def _work(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open, BEGIN_SECONDS)
        began, last = time.monotonic(), False
        while not last and self._failures < MOST_FAILURES:
            tags, some, last = self._next()
            good = self._send_all(tags, some)
            now = time.monotonic()
            self._due = now + min(max(PACE_SECONDS, (now - began) / 50), LONGEST_PACE)
            self._again = 0.0 if good else self._due
        _under_way.discard(self)

    def _next(self) -> tuple[list[str] | None, list[Artifact], bool]:
        """Wait for the next tags and artifacts to send, and whether they are the last."""
        with self._changed:
            while True:
                now = time.monotonic()
                changed = [one for key, one in self._newest.items() if self._sent.get(key) != one]
                fresh = [one for one in changed if one.key not in self._sent]
                if self._closed or (changed and now >= max(self._due, self._again)):
                    return self._tags, changed, self._closed
                if (fresh or self._tags) and now >= self._again:
                    return self._tags, fresh, False
                waits = fresh or self._tags or changed
                until = self._again if fresh or self._tags else max(self._due, self._again)
                self._changed.wait(until - now if waits else None)

    def _send_all(self, tags: list[str] | None, some: list[Artifact]) -> bool:
        try:
            if tags is not None:
                self._ask().patch(f"/flow_runs/{self._flow_run_id}", {"tags": tags})
                self._tags = None if self._tags is tags else self._tags
            for one in some:
                self._send(one)
        except (ServerError, TypeError, KeyError):  # or an answer that is not Prefect's
            self._failures += 1
            return False
        self._failures = 0
        return True

    def _send(self, artifact: Artifact) -> None:
        shown = {"type": artifact.type, "data": artifact.data, "description": artifact.description}
        if known := self._ids.get(artifact.key):
            self._ask().patch(f"/artifacts/{known}", {"data": artifact.data, "description": artifact.description})
        else:
            place = {"flow_run_id": self._flow_run_id, "task_run_id": artifact.task_run_id}
            self._ids[artifact.key] = self._ask().post("/artifacts/", {"key": artifact.key, **shown, **place})["id"]
        self._sent[artifact.key] = artifact

    def _ask(self) -> Api:
        assert self._api is not None, "there is no thread without an API"
        return self._api


_under_way: weakref.WeakSet[Artifacts] = weakref.WeakSet()


def _finish() -> None:
    """Send what the process's launches still have to show at its end, if that is quick."""
    deadline = time.monotonic() + LEAVE_SECONDS
    for artifacts in list(_under_way):
        artifacts.close()
    for artifacts in list(_under_way):
        artifacts.wait(deadline - time.monotonic())


atexit.register(_finish)


def update_artifact(api: Api, artifact: Artifact, flow_run_id: object) -> None:
    """Send an artifact of a periodic check, only where its content has changed.

    Raises:
        ServerError: the server can't be reached.
    """
    latest = api.post("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [artifact.key]}}, "limit": 1})
    data = artifact.data if isinstance(artifact.data, str) else json.dumps(artifact.data)
    if latest and latest[0]["data"] == data:
        api.patch(f"/artifacts/{latest[0]['id']}", {"description": artifact.description})
        return
    shown = {"key": artifact.key, "type": artifact.type, "data": data, "description": artifact.description}
    api.post("/artifacts/", {**shown, "flow_run_id": str(flow_run_id) if flow_run_id else None})
