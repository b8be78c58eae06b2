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

LIVENESS_SECONDS = 1.0
"""Seconds between two questions whether the head is alive."""
LAST_LINES_SECONDS = 2.0


@step()
def execute_call(run: Run, cluster: Cluster) -> CallEnd:
    """Give the call to the run's head and wait for its end.

    Raises:
        Cancelled: somebody cancelled the flow run.
        Lost: the head is gone without an event of the call's end.
    """
    if run.record.allocation == run.record.attempt and cluster.scheduler is None:  # with a scheduler it was announced
        cluster.announce(run.paths.inbox(run.record.allocation))  # a head that takes no more calls records that
    publish(Detachable())
    log = _RunLog(cluster, run.paths.log)
    try:
        call_end = CallEnd.from_event(_await_end(run, cluster, log))
    except BaseException:
        _publish_last_lines(log)
        raise
    log.finish()
    return call_end


class _RunLog:
    """The log of a try on the cluster, published piece by piece; the next piece begins at `offset`."""

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self.path, self.offset = cluster, path, 0

    def publish_piece(self, data: bytes) -> None:
        """Publish a new piece; an empty piece says that the function has written nothing new."""
        self.offset += len(data)
        publish(Output(data))

    def finish(self) -> None:
        """Publish the rest."""
        while data := self._cluster.read(self.path, self.offset):
            self.publish_piece(data)
        publish(Output(b"", last=True))


def _publish_last_lines(log: _RunLog) -> None:
    """Publish the last lines of the log if they come quickly: the run's end must not wait for a host that is away."""
    with contextlib.suppress(SlurmRayFlowError, TimeoutError), interruptible(lambda: None):
        within(LAST_LINES_SECONDS, log.finish, TimeoutError)


def _await_end(run: Run, cluster: Cluster, log: _RunLog) -> Event:
    asked_at, offset, last_reason = time.monotonic(), 0, ""
    while True:
        interrupted()
        due = time.monotonic() - asked_at >= LIVENESS_SECONDS
        liveness = liveness_of(run.record, cluster) if due else None
        data, output = cluster.watch([(run.paths.events, offset), (log.path, log.offset)], cluster.watch_seconds)
        events, length = parse_events(data)
        offset += length
        _warn_of_losses(events)
        if copied := find_event(events, "files_copied"):
            size, seconds = format_memory(copied["bytes"]), format_duration(copied["seconds"])
            publish(Note(f"copied {size} into the run's folder in {seconds}"))
        if ended := find_event(events, "call_ended"):
            return ended
        if liveness is not None:
            asked_at = time.monotonic()
            if not liveness.alive:
                raise error_of_lost_head(liveness, NO_WORD, where(run.record))
            if liveness.waiting and liveness.waiting != last_reason:
                publish(Note(liveness.waiting))
            last_reason = liveness.waiting
        log.publish_piece(output)


def _warn_of_losses(events: list[Event]) -> None:
    for event in events:
        text = ""
        if event["event"] == "node_lost":
            text = f"node {event['node']} is lost ({event['why'].partition(chr(10))[0]}); Ray goes on without it"
        elif event["event"] == "lock_lost" and event["files"]:
            text = f"somebody removed {', '.join(event['files'])} and has the lock now, too: two use the server at once"
        if text:
            publish(Warned(text))
