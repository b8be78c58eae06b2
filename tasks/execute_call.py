"""The step that waits for a call's end, and publishes the function's output."""

from __future__ import annotations

import contextlib
import time
from pathlib import PurePosixPath

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.run_facts import liveness_of
from slurm_ray_flow.blocks.waits import within
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.interruption import interrupted, interruptible
from slurm_ray_flow.core.launch_events import Detachable, Note, Output, Warned, publish
from slurm_ray_flow.core.quantities import format_duration, format_memory
from slurm_ray_flow.core.run import CallEnd, Event, find_event, parse_events
from slurm_ray_flow.core.run_state import NO_WORD
from slurm_ray_flow.tasks.retry import step
from slurm_ray_flow.tasks.run import Run, error_of_lost_head, where

LIFE_SECONDS = 1.0
"""Seconds between two questions whether the head lives."""
LAST_LINES_SECONDS = 2.0


@step()
def execute_call(run: Run, cluster: Cluster) -> CallEnd:
    """Give the call to the run's head and wait for its end.

    Raises:
        Cancelled: somebody cancelled the flow run.
        Lost: the head is gone and left no word.
    """
    own = run.record.allocation == run.record.attempt and cluster.scheduler is None  # there it was announced before
    if own:
        cluster.announce(run.paths.inbox(run.record.allocation))  # a head that takes it no more has a last word
    publish(Detachable())
    log = _RunLog(cluster, run.paths.log)
    try:
        ended = CallEnd.from_event(_wait(run, cluster, log))
    except BaseException:
        _last_lines(log)
        raise
    log.finish()
    return ended


class _RunLog:
    """The log of a try on the cluster, published piece by piece; the next piece begins at `offset`."""

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self.path, self.offset = cluster, path, 0

    def pass_on(self, data: bytes) -> None:
        """Publish a new piece; an empty one says that there is none yet."""
        self.offset += len(data)
        publish(Output(data))

    def finish(self) -> None:
        """Publish the rest."""
        while data := self._cluster.read(self.path, self.offset):
            self.pass_on(data)
        publish(Output(b"", last=True))


def _last_lines(log: _RunLog) -> None:
    """Publish the last lines of the log if they come quickly: the run's end must not wait for a host that is away."""
    with contextlib.suppress(SlurmRayFlowError, TimeoutError), interruptible(lambda: None):
        within(LAST_LINES_SECONDS, log.finish, TimeoutError)


def _wait(run: Run, cluster: Cluster, log: _RunLog) -> Event:
    looked, offset, trouble = time.monotonic(), 0, ""
    while True:
        interrupted()
        due = time.monotonic() - looked >= LIFE_SECONDS
        life = liveness_of(run.record, cluster) if due else None
        news, output = cluster.watch([(run.paths.events, offset), (log.path, log.offset)], cluster.watch_seconds)
        events, taken = parse_events(news)
        offset += taken
        _warn_of_losses(events)
        if copied := find_event(events, "files_copied"):
            size, seconds = format_memory(copied["bytes"]), format_duration(copied["seconds"])
            publish(Note(f"copied {size} into the run's folder in {seconds}"))
        if ended := find_event(events, "call_ended"):
            return ended
        if life is not None:
            looked = time.monotonic()
            if not life.alive:
                raise error_of_lost_head(life, NO_WORD, where(run.record))
            if life.waiting and life.waiting != trouble:
                publish(Note(life.waiting))
            trouble = life.waiting
        log.pass_on(output)


def _warn_of_losses(events: list[Event]) -> None:
    for event in events:
        text = ""
        if event["event"] == "node_lost":
            text = f"node {event['node']} is lost ({event['why'].partition(chr(10))[0]}); Ray goes on without it"
        elif event["event"] == "lock_lost" and event["files"]:
            text = f"somebody removed {', '.join(event['files'])} and has the lock now, too: two use the server at once"
        if text:
            publish(Warned(text))
