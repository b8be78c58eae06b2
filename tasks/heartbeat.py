"""The heartbeat that a waiting launch sends to Prefect, and its question whether it is cancelled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slurm_ray_flow.blocks.server.automation import emit_heartbeat
from slurm_ray_flow.core.errors import Cancelled
from slurm_ray_flow.core.interruption import interruptible
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.tasks.end_report import stop_if_leaving

HEARTBEAT_SECONDS = 30.0
ASK_SECONDS = 5.0


class Heartbeat:
    """A heartbeat at once and every 30 s, and a question every 5 s. An unreachable server ends no run."""

    def __init__(self) -> None:
        self._id = str(flow_run.get_id() or "")
        self._beaten, self._asked = float("-inf"), time.monotonic()
        self._stack = contextlib.ExitStack()
        self._client: SyncPrefectClient | None = None
        self._silent = False

    def cancel_asked(self) -> bool:
        """Whether somebody cancelled the flow run in Prefect. Most calls do nothing and cost nothing."""
        now = time.monotonic()
        if not self._id:
            return False
        if now - self._beaten > HEARTBEAT_SECONDS:
            self._beaten = now
            emit_heartbeat()
        if now - self._asked < ASK_SECONDS:
            return False
        self._asked = now
        return self._ask()

    def close(self) -> None:
        """Give the connection back."""
        self._stack.close()

    def _ask(self) -> bool:
        try:
            if self._client is None:
                self._client = self._stack.enter_context(get_client(sync_client=True))
            state = self._client.read_flow_run(UUID(self._id)).state
        except Exception as error:  # whatever the client throws, the run goes on
            self._warn(error)
            return False
        self._silent = False
        return state is not None and state.type.value in {"CANCELLING", "CANCELLED"}

    def _warn(self, error: Exception) -> None:
        if not self._silent:
            self._silent = True
            text = f"Prefect's server does not answer ({type(error).__name__}); the run goes on without it"
            get_run_logger().warning(text)
            reporter().say(text)


@contextlib.contextmanager
def cancellable(where: str) -> Iterator[None]:
    """Have a cancel in Prefect end each wait for the cluster inside the block, also for a host that is away.

    Raises:
        Cancelled: somebody cancelled the flow run.
    """
    pulse = Heartbeat()

    def check() -> None:
        stop_if_leaving()
        if pulse.cancel_asked():
            raise Cancelled("the run was cancelled in Prefect", where=where)

    try:
        with interruptible(check):
            yield
    finally:
        pulse.close()
