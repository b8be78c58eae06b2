"""`srf queue`: the holders and the queue of a shared server."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.names import A_CLUSTER, cluster_named
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_table, print_text
from slurm_ray_flow.core.errors import OptionError, ServerError
from slurm_ray_flow.core.lock import LockQueue, LockUser, queue_rows, waiting_state

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster

WATCH_SECONDS = 2.0


def queue(cluster: Annotated[str, A_CLUSTER], *, watch: Annotated[bool, Switch] = False, json: Json = False) -> None:
    """Show who holds a shared server, since when, and who waits for it.

    Who waits stands in the order in which it is given out; those in Prefect come last.

    Examples:
        srf queue desi

        srf queue desi --watch

    Args:
        cluster: Its name.
        watch: Go on, and show each change, until Ctrl-C.
    """
    server = cluster_named(cluster)
    state = _state(server)
    _show(server.label, *state, json)
    while watch:
        time.sleep(WATCH_SECONDS)
        previous, state = state, _state(server)
        if state != previous:
            _show(server.label, *state, json)
            sys.stdout.flush()


def _state(cluster: Cluster) -> tuple[LockQueue, list[dict[str, Any]]]:
    """The lock's holders and queue, and the launches that wait in Prefect."""
    from slurm_ray_flow.tasks.cluster_report import report

    lock = report(cluster, "lock").answered().lock
    if lock is None:
        raise OptionError(f"{cluster.label} has no lock, and so no queue", advice=_without_lock(cluster))
    return lock, _waiting_in_prefect(cluster.label)


def _without_lock(cluster: Cluster) -> str:
    if cluster.scheduler is not None:
        name = cluster.scheduler.dialect.name
        return f"{name} has one: `srf runs` says what your runs wait for, `srf clusters NAME` what is taken"
    if cluster.kind == "local-machine":
        return "name a server: `srf clusters` lists them"
    return "give its block a lock_path if several people share it"


def _waiting_in_prefect(label: str) -> list[dict[str, Any]]:
    """The launches that wait for their slot in this Prefect; none where it does not answer."""
    from slurm_ray_flow.blocks.server.client import api_in_use
    from slurm_ray_flow.tasks.flow_state import flow_runs_in_state

    api = api_in_use()
    with contextlib.suppress(ServerError):
        flow_runs = flow_runs_in_state(api, waiting_state(label)) if api else []
        return [{"run": run["id"], "name": run["name"], "since": _timestamp(run["start_time"])} for run in flow_runs]
    return []


def _timestamp(text: str | None) -> float | None:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


def _show(label: str, queue: LockQueue, in_prefect: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json({"cluster": label, **dataclasses.asdict(queue), "in_prefect": in_prefect})
        return
    in_queue = tuple(LockUser.from_json({**one, "user": "(in Prefect)"}) for one in in_prefect)
    if rows := queue_rows(dataclasses.replace(queue, waiting=queue.waiting + in_queue), time.time()):
        print_table(["", "USER", "SINCE", "RUN", "FUNCTION"], [list(row.values()) for row in rows])
    print_text(_summary(label, queue, len(in_prefect)))


def _summary(label: str, queue: LockQueue, in_prefect: int) -> str:
    waiting = len(queue.waiting) + in_prefect
    free = "free" if queue.free else "taken"
    slots = f"{label} is {free}" if queue.slots == 1 else f"{label} has {queue.free} of {queue.slots} slots free"
    line = f"{slots}; {'nobody waits' if not waiting else f'{waiting} wait' + ('s' if waiting == 1 else '')}"
    if queue.free:
        return line
    return f"{line} there or in this Prefect (who waits in a Prefect of his own is not seen)"
