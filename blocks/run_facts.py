"""The facts of a run, from its cluster, or from the folders of this machine. It imports no Prefect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.processes import Process, alive, alive_as_noted, elsewhere
from slurm_ray_flow.core.run import ALIVE, GONE, Event, Liveness, RunPaths, RunRecord, find_event, parse_events
from slurm_ray_flow.core.run_state import RunFacts, RunStatus, run_state

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster

LOCAL = "local-machine"
"""The kind of cluster whose folders are this machine's."""


def launch_alive(record: RunRecord) -> bool | None:
    """Whether the run's launching process lives; None for a process of another host, which can't be seen."""
    if record.started is None or record.boot_id is None:
        return False
    if elsewhere(record.boot_id):
        return None
    return alive(Process(record.pid, record.started, record.boot_id))


def status_of(facts: RunFacts) -> RunStatus:
    """The state of a run; a final state that is not in the record yet is saved there."""
    record, status = facts.record, run_state(facts)
    if status.state.final and not (record.ended or facts.launch_goes_on or record.is_new(facts.now)):
        ended = dataclasses.replace(record, ended=status.state.value, ended_at=status.ended_at or 0.0, waiting="")
        store.save_record(dataclasses.replace(ended, failure_cause=status.cause))
    return status


def ask(record: RunRecord, cluster: Cluster) -> RunFacts:
    """The facts of a run from its cluster.

    Raises:
        SlurmRayFlowError: the cluster does not answer.
    """
    events = events_of(record, cluster)
    if find_event(events, "call_ended"):
        return RunFacts(record, events, GONE, launch_alive=launch_alive(record))
    head_events = events if _has_own_head(record) else events_of(record, cluster, record.allocation)
    liveness = cluster.life(RunPaths(record.paths.root, record.allocation), head_events)
    if not liveness.alive:  # its last events may have come between the two questions
        events = events_of(record, cluster)
    return _joined_facts(record, events, head_events, liveness)


def read_here(record: RunRecord) -> RunFacts:
    """The facts of a run from the folders of this machine; for a run elsewhere, those in its record."""
    if record.kind != LOCAL:
        return RunFacts(record, launch_alive=launch_alive(record))
    head_events = _read_events(RunPaths(record.paths.root, record.allocation))
    allocated = find_event(head_events, "allocated")
    alive_or_unknown = False if allocated is None else alive_as_noted(allocated)
    liveness = None if alive_or_unknown is None else ALIVE if alive_or_unknown else GONE
    return _joined_facts(record, _read_events(record.paths), head_events, liveness)


def _joined_facts(
    record: RunRecord, events: list[Event], head_events: list[Event], liveness: Liveness | None
) -> RunFacts:
    """The facts, with `allocated` of a warm head that is gone, which stands only in the head's own events."""
    if liveness is not None and not liveness.alive and not _has_own_head(record):
        events = [*(event for event in head_events if event["event"] == "allocated"), *events]
    return RunFacts(record, events, liveness, launch_alive=launch_alive(record))


def _has_own_head(record: RunRecord) -> bool:
    return record.allocation == record.attempt


def liveness_of(record: RunRecord, cluster: Cluster, events: list[Event] | None = None) -> Liveness:
    """Whether the head that takes this run's call lives, or may still begin.

    Args:
        record: the run.
        cluster: its cluster.
        events: the run's own events, if they are known already.
    """
    if events is None or record.allocation != record.attempt:
        events = events_of(record, cluster, record.allocation)
    return cluster.life(RunPaths(record.paths.root, record.allocation), events)


def events_of(record: RunRecord, cluster: Cluster, run_id: str = "") -> list[Event]:
    """The events of a run, or of its allocation."""
    from slurm_ray_flow.blocks.cluster import recorded

    return recorded(cluster, RunPaths(record.paths.root, run_id or record.attempt).events)


def _read_events(paths: RunPaths) -> list[Event]:
    try:
        return parse_events(Path(paths.events).read_bytes())[0]
    except OSError:
        return []
