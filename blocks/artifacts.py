"""Artifacts of a flow run, which a thread sends, so that no launch waits for them or fails because of them."""

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
"""The least seconds between two changes of an artifact; they increase in long runs up to the second number."""
MOST_FAILURES = 3
"""The number of failures in a row after which no artifact is sent any more."""
LEAVE_SECONDS = 5.0
"""Seconds that the end of the process waits for artifacts that are still to be sent."""


@dataclass(frozen=True)
class Artifact:
    """An artifact as the API takes it; a newer one with the same key replaces its content in the flow run."""

    key: str
    type: str
    data: Any
    description: str
    task_run_id: str | None = None


class Artifacts:
    """The artifacts of one flow run. `show` returns at once; only the newest artifact of each key is sent."""

    def __init__(self, api: Api | None, flow_run_id: str) -> None:
        self._api, self._flow_run_id = api, flow_run_id
        self._newest: dict[str, Artifact] = {}
        self._sent: dict[str, Artifact] = {}
        self._ids: dict[str, str] = {}
        self._tags: list[str] | None = None
        self._changed = threading.Condition()
        self._open = self._closed = False
        self._failures, self._next_change_at, self._retry_at = 0, 0.0, 0.0
        self._thread: threading.Thread | None = None
        if api is not None:
            self._thread = threading.Thread(target=self._send_until_closed, name="srf-artifacts", daemon=True)
            self._thread.start()
            _open_artifacts.add(self)

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
        """Wait until all artifacts are sent, at most so many seconds."""
        if self._thread is not None:
            self._thread.join(max(0.0, seconds))

    def _send_until_closed(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open, BEGIN_SECONDS)
        began, last = time.monotonic(), False
        while not last and self._failures < MOST_FAILURES:
            tags, changed, last = self._wait_for_changes()
            sent = self._send_all(tags, changed)
            now = time.monotonic()
            self._next_change_at = now + min(max(PACE_SECONDS, (now - began) / 50), LONGEST_PACE)
            self._retry_at = 0.0 if sent else self._next_change_at
        _open_artifacts.discard(self)

    def _wait_for_changes(self) -> tuple[list[str] | None, list[Artifact], bool]:
        """Wait for the next tags and artifacts to send, and whether they are the last."""
        with self._changed:
            while True:
                now = time.monotonic()
                changed = [artifact for key, artifact in self._newest.items() if self._sent.get(key) != artifact]
                unsent = [artifact for artifact in changed if artifact.key not in self._sent]
                if self._closed or (changed and now >= max(self._next_change_at, self._retry_at)):
                    return self._tags, changed, self._closed
                if (unsent or self._tags) and now >= self._retry_at:
                    return self._tags, unsent, False
                something_to_send = unsent or self._tags or changed
                next_time = self._retry_at if unsent or self._tags else max(self._next_change_at, self._retry_at)
                self._changed.wait(next_time - now if something_to_send else None)

    def _send_all(self, tags: list[str] | None, artifacts: list[Artifact]) -> bool:
        try:
            if tags is not None:
                self._client().patch(f"/flow_runs/{self._flow_run_id}", {"tags": tags})
                self._tags = None if self._tags is tags else self._tags
            for artifact in artifacts:
                self._send(artifact)
        except (ServerError, TypeError, KeyError):  # or an answer that is not Prefect's
            self._failures += 1
            return False
        self._failures = 0
        return True

    def _send(self, artifact: Artifact) -> None:
        content = {"data": artifact.data, "description": artifact.description}
        if artifact_id := self._ids.get(artifact.key):
            self._client().patch(f"/artifacts/{artifact_id}", content)
        else:
            owner = {"flow_run_id": self._flow_run_id, "task_run_id": artifact.task_run_id}
            created = self._client().post(
                "/artifacts/", {"key": artifact.key, "type": artifact.type, **content, **owner}
            )
            self._ids[artifact.key] = created["id"]
        self._sent[artifact.key] = artifact

    def _client(self) -> Api:
        assert self._api is not None, "there is no thread without an API"
        return self._api


_open_artifacts: weakref.WeakSet[Artifacts] = weakref.WeakSet()


def _send_remaining() -> None:
    """Send the remaining artifacts of all launches at the end of the process, within a bound."""
    deadline = time.monotonic() + LEAVE_SECONDS
    for artifacts in list(_open_artifacts):
        artifacts.close()
    for artifacts in list(_open_artifacts):
        artifacts.wait(deadline - time.monotonic())


atexit.register(_send_remaining)


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
    content = {"key": artifact.key, "type": artifact.type, "data": data, "description": artifact.description}
    api.post("/artifacts/", {**content, "flow_run_id": str(flow_run_id) if flow_run_id else None})
