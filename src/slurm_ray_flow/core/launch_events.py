"""The events of a launch, and the one stream of them: a launch publishes, and does not know who subscribes.

Terminal, notebook, map and Prefect's page are subscribers. Each gets all events of a launch in order, in the thread
that publishes them.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from slurm_ray_flow.core.artifacts import ArtifactContent
    from slurm_ray_flow.core.run import Event, Outcome


AWAIT_VALUE = "await_value"
"""The name of the step that waits for the values of other runs, before anything is prepared."""


class LaunchEvent:
    """What a launch publishes."""


@dataclass(frozen=True)
class RunBegan(LaunchEvent):
    """A run has begun; it has an id, and a page in the UI or ""."""

    run_id: str
    function: str
    cluster: str
    url: str


@dataclass(frozen=True)
class StepStarted(LaunchEvent):
    """A step has started; the one before it has ended."""

    name: str


@dataclass(frozen=True)
class StepFailed(LaunchEvent):
    """The present step has failed, and the launch goes on with the next all the same."""


@dataclass(frozen=True)
class Note(LaunchEvent):
    """A text about the present step; the last one is its summary."""

    text: str


@dataclass(frozen=True)
class Warned(LaunchEvent):
    """A warning about the present step."""

    text: str


@dataclass(frozen=True)
class Waiting(LaunchEvent):
    """The reason that the run waits for the cluster; or, where the wait is over, what it has waited for."""

    text: str
    over: bool = False


@dataclass(frozen=True)
class Placed(LaunchEvent):
    """The run is on the cluster: its job is in the queue, or its head lives and has written this event `allocated`."""

    allocated: Event | None = None


@dataclass(frozen=True)
class Detachable(LaunchEvent):
    """The run goes on if this process ends."""


@dataclass(frozen=True)
class FilesReady(LaunchEvent):
    """Files and environment are on the cluster; `prepared` is what another process can launch from, as JSON."""

    prepared: str


@dataclass(frozen=True)
class Output(LaunchEvent):
    """What the function has written since the last event of this kind; empty while it writes nothing.

    Lines may be cut anywhere. The last one of a try is marked as such.
    """

    data: bytes
    last: bool = False


@dataclass(frozen=True)
class ResourcesUsed(LaunchEvent):
    """The use of resources of a call that took long enough to be judged, and a table of it in markdown."""

    text: str
    table: str


@dataclass(frozen=True)
class ArtifactMade(LaunchEvent):
    """There is a table or a text about the launch for people."""

    content: ArtifactContent


@dataclass(frozen=True)
class TryFailed(LaunchEvent):
    """A try has failed, and the next one begins with the first step; `changes` says when and how."""

    error: BaseException
    changes: str

    @property
    def text(self) -> str:
        """What has failed, and what is done about it."""
        return f"{type(self.error).__name__}: {self.changes}"


@dataclass(frozen=True)
class CallEnded(LaunchEvent):
    """The launch has the outcome of its call."""

    outcome: Outcome


@dataclass(frozen=True)
class RunEnded(LaunchEvent):
    """The launch is over, and what it raises, if anything."""

    error: BaseException | None


Subscriber: TypeAlias = Callable[[LaunchEvent], object]

_subscribers: contextvars.ContextVar[tuple[Subscriber, ...]] = contextvars.ContextVar(
    "slurm_ray_flow_subscribers", default=()
)


def publish(event: LaunchEvent) -> None:
    """Give an event to each subscriber of this context's stream."""
    publisher()(event)


def publisher() -> Subscriber:
    """A function that publishes into this context's stream, also from threads that have another context."""
    subscribers = _subscribers.get()

    def publish_here(event: LaunchEvent) -> None:
        for subscriber in subscribers:
            subscriber(event)

    return publish_here


def stream_to(*subscribers: Subscriber) -> None:
    """Begin a stream to these subscribers and no others, for the rest of this context."""
    _subscribers.set(subscribers)


@contextlib.contextmanager
def streamed_to(*subscribers: Subscriber) -> Iterator[None]:
    """Begin a stream to these subscribers and no others, for the block."""
    token = _subscribers.set(subscribers)
    try:
        yield
    finally:
        _subscribers.reset(token)
