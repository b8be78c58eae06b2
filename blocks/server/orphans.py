"""Watches over runs on other machines whose launching process is gone.

    python -m slurm_ray_flow.blocks.server.orphans

The server's supervisor starts it when there is such a run, since loading a cluster needs Prefect and asking it needs a
connection. It keeps one connection a cluster, ends by itself when nothing is left to watch, and with the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from slurm_ray_flow.blocks import shell, slots
from slurm_ray_flow.blocks.processes import alive
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import ServerFiles, alone, auth_string, server_files
from slurm_ray_flow.blocks.server.sweep import LOCAL, judge, known_runs, launch_alive, read_record, see_to_slot
from slurm_ray_flow.blocks.slots import Held
from slurm_ray_flow.core.errors import ConnectionFailed, ServerError
from slurm_ray_flow.core.outcome import Ended
from slurm_ray_flow.core.run import RunPaths, RunRecord, find_event
from slurm_ray_flow.core.sweep import ClusterState

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster

ASK_SECONDS, SLOT_SECONDS = 30.0, 5.0
"""How often clusters are asked; more often where a run holds what others wait for."""
LOOK_SECONDS = 0.5
QUIET_ROUNDS = 3
"""It ends when there was nothing to watch for so many rounds."""
AGAIN_SECONDS, LOG_IN_SECONDS = 60.0, 3600.0
"""When a cluster is asked again that gave no answer; and one that let us not in: sites block who tries often."""


class Clusters:
    """The clusters that are asked, each over one connection, and for how long each has given no answer."""

    def __init__(self) -> None:
        self._known: dict[str, Cluster] = {}
        self._silent: dict[str, float] = {}
        self._again: dict[str, float] = {}

    def state(self, record: RunRecord) -> ClusterState:
        """What its cluster says of a run."""
        name, now = f"{record.kind}/{record.cluster}", time.monotonic()
        if now < self._again.get(name, 0.0):
            return self._unanswered(name)
        try:
            found = asked_state(record, self._cluster(name, record))
        except Exception as error:  # whatever it is, the other clusters are asked all the same
            refused = isinstance(error, ConnectionFailed) and not error.transient
            self._again[name] = now + (LOG_IN_SECONDS if refused else AGAIN_SECONDS)
            self._known.pop(name, None)
            sys.stderr.write(f"orphans: {name} gives no answer: {error}\n")
            return self._unanswered(name)
        self._silent.pop(name, None)
        return found

    def cancel(self, record: RunRecord) -> None:
        """Ask a run's head to cancel it."""
        cluster = self._known.get(f"{record.kind}/{record.cluster}")
        if cluster is not None:
            cluster.cancel(record.paths)

    def _cluster(self, name: str, record: RunRecord) -> Cluster:
        from slurm_ray_flow.blocks.clusters import cluster_of

        if name not in self._known:
            self._known[name] = cluster_of(record)
        return self._known[name]

    def _unanswered(self, name: str) -> ClusterState:
        since = self._silent.setdefault(name, time.monotonic())
        return ClusterState("unknown", silent=time.monotonic() - since)


def asked_state(record: RunRecord, cluster: Cluster) -> ClusterState:
    """What a cluster says of a run, in two questions; one where the run has ended.

    Raises:
        SlurmRayFlowError: it does not answer.
    """
    from slurm_ray_flow.blocks.cluster import recorded

    events = recorded(cluster, record.paths.events)
    if ended := find_event(events, "call_ended"):
        return ClusterState("unknown", Ended.from_event(ended))
    paths = RunPaths(record.paths.root, record.allocation)
    if record.allocation != record.attempt:
        events = recorded(cluster, paths.events)
    if cluster.life(paths, events).alive:
        return ClusterState("alive")
    return ClusterState("dead" if find_event(events, "allocated") else "absent")


def look(api: Api, clusters: Clusters) -> Iterator[str]:
    """Sees once to all that nobody else sees to, and says in a line what it did.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    for flow_run, record in known_runs(api):
        if _orphan(record):
            with contextlib.suppress(ConnectionFailed):
                yield from judge(api, flow_run, record, clusters.state(record), partial(clusters.cancel, record))
    for held, found in orphan_slots(api):
        see_to_slot(api, held, found, clusters.state(found))


def _orphan(record: RunRecord) -> bool:
    return record.kind != LOCAL and not record.waiting and not launch_alive(record)


def orphan_slots(api: Api) -> list[tuple[Held, RunRecord]]:
    """The slots of shared servers that runs hold whose launch is gone."""
    found = [(held, record) for held in slots.noted() if held.url == api.url and (record := read_record(held.run_id))]
    return [
        (held, record) for held, record in found if record.kind != LOCAL and (held.left or not launch_alive(record))
    ]


def needed(api: Api) -> bool:
    """Whether there is something to watch.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    return bool(orphan_slots(api)) or any(_orphan(record) for _, record in known_runs(api))


def ensure_watch(files: ServerFiles, api: Api) -> Iterator[str]:
    """Starts the watch if there is something to watch and it does not run; for the supervisor.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    with alone(files, f"orphans-{socket.gethostname()}") as none_runs:
        pass
    if not none_runs or not needed(api):
        return
    shell.start(
        [sys.executable, "-m", "slurm_ray_flow.blocks.server.orphans"],
        log=files.folder / "orphans.log",
        env=dict(os.environ),  # with the passwords: it logs in
        cwd=files.prefect_home,  # Prefect reads settings from the folder it starts in
    )
    yield "runs elsewhere have lost their launching process: they are watched from here"


def main() -> int:
    """Watches until nothing is left to watch, or the supervisor has gone."""
    files = server_files()
    state = read_state(files)
    if state is None:
        return 1
    with alone(files, f"orphans-{socket.gethostname()}") as first:
        if first:
            from slurm_ray_flow.blocks.server.client import connect

            connect(state.address())
            _watch(Api(state.url, auth_string(files)), lambda: alive(state.supervisor))
    return 0


def _watch(api: Api, goes_on: Callable[[], bool]) -> None:
    clusters, quiet, next_look = Clusters(), 0, 0.0
    while quiet < QUIET_ROUNDS and goes_on():
        if time.monotonic() >= next_look:
            try:
                for line in look(api, clusters):
                    sys.stderr.write(f"orphans: {line}\n")
                quiet = 0 if needed(api) else quiet + 1
            except ServerError as problem:
                sys.stderr.write(f"orphans: {problem}\n")
            next_look = time.monotonic() + (SLOT_SECONDS if orphan_slots(api) else ASK_SECONDS)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
