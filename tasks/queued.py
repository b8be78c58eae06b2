"""A run whose head waits for the lock on its server: what the head says of that, shown at home."""

from __future__ import annotations

import contextlib
import time

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slurm_ray_flow.blocks import limits
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.life import Life
from slurm_ray_flow.core.mirror import queued_state, queued_text
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.run import Event, find_event
from slurm_ray_flow.tasks.flow_state import name_state
from slurm_ray_flow.tasks.page import page
from slurm_ray_flow.tasks.run import Run

SHOW_SECONDS = 5.0
"""How often a waiting run says something new in Prefect, at most."""


class Queued:
    """Tells of the wait; a run that need not wait costs nothing."""

    def __init__(self, run: Run, cluster: Cluster) -> None:
        self._run, self._label = run, cluster.label
        self._text, self._shown = "", float("-inf")

    def tell(self, events: list[Event], life: Life | None) -> None:
        """Show what the head waits for, when that has changed."""
        text = self._now(events, life)
        if text is None:
            return
        if not text:
            self.over()
        elif text != self._text and time.monotonic() - self._shown > SHOW_SECONDS:
            self._show(text)

    def _now(self, events: list[Event], life: Life | None) -> str | None:
        """What it waits for now: "" for nothing more, None where nothing new is known."""
        if waiting := find_event(events, "waiting"):
            return "" if find_event(events, "lock_held") else queued_text(self._label, waiting, time.time())
        if find_event(events, "allocated"):
            return ""
        return life.waiting or None if life else None

    def over(self) -> None:
        """The run has its turn."""
        if self._text:
            self._show("")
            reporter().say(f"has {self._label} now")

    def _show(self, text: str) -> None:
        self._text, self._shown = text, time.monotonic()
        news = page().waits(text)
        if text:
            reporter().say(text)
        if news and flow_run.get_id():
            get_run_logger().info(text or f"has {self._label} now")
        api = limits.api_here()
        if api is None or flow_run.get_id() is None:
            return
        with contextlib.suppress(ServerError):
            name_state(api, self._run.record.flow_run_id, queued_state(self._label) if text else "Running", text)
