"""A question to a cluster, in a thread of its own, so that the caller chooses how long to wait."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from slurm_ray_flow.blocks.ssh import authentication
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.launch_events import LaunchEvent, Note, streamed_to

T = TypeVar("T")


class Question(Generic[T]):
    """A question that a thread asks at once. It asks the user for no password.

    Args:
        question: the function that gives the answer, however long it takes.

    Attributes:
        answer: the answer; None before it comes, and after a failure.
        error: the exception of a question that failed.
        unasked: the passwords and the like that the user was not asked for.
        ended: the time of the end, on the monotonic clock; None while the question is under way.
    """

    def __init__(self, question: Callable[[], T]) -> None:
        self.answer: T | None = None
        self.error: Exception | None = None
        self.ended: float | None = None
        self.unasked = authentication.Unasked()
        self._last_note = ""
        self._began = time.monotonic()
        context = contextvars.copy_context()
        target = (self._ask, question)
        self._thread = threading.Thread(target=context.run, args=target, daemon=True, name="srf-asked")
        self._thread.start()

    def wait(self, deadline: float) -> None:
        """Wait until the question has ended, or until a time of the monotonic clock."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def why(self) -> str:
        """The reason that there is no answer; "" where there is one."""
        if self.error is not None:
            is_ours = isinstance(self.error, SlurmRayFlowError)
            return self.error.what if is_ours else f"{type(self.error).__name__}: {self.error}"  # type: ignore[attr-defined]
        if self.ended is not None:
            return ""
        return self._last_note or f"no answer within {time.monotonic() - self._began:.0f} s"

    def _ask(self, question: Callable[[], T]) -> None:
        try:
            with streamed_to(self._store_note), authentication.asking_nobody() as self.unasked:
                self.answer = question()
        except Exception as error:  # one cluster must not hide the others
            self.error = error
        finally:
            self.ended = time.monotonic()

    def _store_note(self, event: LaunchEvent) -> None:
        """Keep a message about the connection."""
        if isinstance(event, Note):
            self._last_note = event.text
