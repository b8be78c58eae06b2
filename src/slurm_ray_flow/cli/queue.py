"""`srf queue`: who holds a shared server, and who waits for it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.clusters import Switch, cluster_named
from slurm_ray_flow.cli.output import Json, print_json, print_table, print_text
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.findings import clock

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster

WATCH_SECONDS = 2.0


def queue(cluster: str, *, watch: Annotated[bool, Switch] = False, json: Json = False) -> None:
    """Show who holds a shared server, since when, and who waits for it in which order.

    Args:
        cluster: Its name.
        watch: Go on, and show each change, until Ctrl-C.
    """
    found = cluster_named(cluster)
    state = _state(found)
    _show(found.label, state, json)
    while watch:
        time.sleep(WATCH_SECONDS)
        before, state = state, _state(found)
        if state != before:
            _show(found.label, state, json)
            sys.stdout.flush()


def _state(cluster: Cluster) -> dict[str, Any]:
    if cluster.lock is None:
        advice = "give its block a lock_path if several people share it"
        raise OptionError(f"{cluster.label} has no lock, and so no queue", advice=advice)
    state: dict[str, Any] = cluster.ask("queue.state", path=cluster.lock.path, slots=cluster.lock.slots)
    return state


def _show(label: str, state: dict[str, Any], json: bool) -> None:
    if json:
        print_json({"cluster": label, **state})
        return
    if state["holders"] or state["waiting"]:
        holding = [_row("holds it", holder) for holder in state["holders"]]
        waiting = [_row(f"{ahead} ahead", ticket) for ahead, ticket in enumerate(state["waiting"])]
        print_table(["", "USER", "SINCE", "RUN", "FUNCTION"], [*holding, *waiting])
    print_text(_summary(label, state))


def _row(place: str, who: dict[str, Any]) -> list[str]:
    run = "not one of ours" if who.get("foreign") else str(who.get("run") or "")[:8]
    return [place, str(who.get("user") or "somebody"), clock(who.get("since")), run, str(who.get("name") or "")]


def _summary(label: str, state: dict[str, Any]) -> str:
    waiting = len(state["waiting"])
    free = "free" if state["free"] else "taken"
    slots = (
        f"{label} is {free}" if state["slots"] == 1 else f"{label} has {state['free']} of {state['slots']} slots free"
    )
    return f"{slots}; {'nobody waits' if not waiting else f'{waiting} wait' + ('s' if waiting == 1 else '')}"
