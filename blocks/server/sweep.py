"""One sweep: looks for active flow runs whose launching process is gone, and carries out the verdicts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from time import time
from typing import Any

from slurm_ray_flow.blocks import slots
from slurm_ray_flow.blocks.processes import Process, alive, alive_as_noted, elsewhere
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.automation import HEARTBEAT
from slurm_ray_flow.blocks.slots import Held
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.events import run_failed
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.outcome import Ended
from slurm_ray_flow.core.run import RunPaths, RunRecord, find_event, parse_events
from slurm_ray_flow.core.sweep import SILENT, TAG, Action, ClusterState, HeadState, Verdict, slot_is_free, verdict

ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]
PAGE = 200
"""So many flow runs Prefect gives with one answer."""
LOCAL = "local-machine"
"""The kind of cluster that can be asked from here: its folders are this machine's."""


def sweep(api: Api) -> Iterator[str]:
    """Sees to all active runs of ours, and says in a line what it did about each.

    Raises:
        ServerError: the server can't be reached.
    """
    for flow_run, record in known_runs(api):
        cancel = partial(Path(record.paths.cancel).touch, mode=0o600)
        try:
            yield from judge(api, flow_run, record, cluster_state(record), cancel)
        except ServerError:
            raise
        except Exception as error:  # of one run whose files are damaged; the others are seen to all the same
            yield f"run {record.run_id}: can't be judged: {type(error).__name__}: {error}"
    see_to_slots(api)


def judge(
    api: Api, flow_run: dict[str, Any], record: RunRecord, cluster: ClusterState, cancel: Callable[[], None]
) -> Iterator[str]:
    """Decides about one run and does it; `cancel` has its cluster end it."""
    decided = verdict(record, cluster, flow_state=flow_run["state_type"], launch_alive=launch_alive(record), now=time())
    if decided.action is Action.CANCEL:
        cancel()
    carry_out(api, flow_run, decided)
    if decided.action is Action.END and decided.state in {"FAILED", "CRASHED"}:
        cause, _, message = decided.message.partition(": ")
        api.post("/events", [run_failed(record, cause, message).body()])
    if decided.action in {Action.CANCEL, Action.END}:
        yield f"run {record.run_id}: {decided.action.value} {decided.state} {decided.message}".rstrip()


def known_runs(api: Api) -> Iterator[tuple[dict[str, Any], RunRecord]]:
    """The active flow runs that were launched from this home.

    Those launched elsewhere, or not yet noted, are seen to by the server's automation.
    """
    for flow_run in active_runs(api):
        record = read_record(flow_run["id"])
        if record is not None:
            yield flow_run, record


def see_to_slots(api: Api) -> None:
    """Sees to the slots of runs on this machine whose launch is gone.

    Raises:
        ServerError: the server can't be reached.
    """
    for held in slots.noted():
        found = read_record(held.run_id)
        if found is None or found.kind == LOCAL:
            see_to_slot(api, held, found, cluster_state(found) if found else ClusterState("unknown"))


def see_to_slot(api: Api, held: Held, record: RunRecord | None, cluster: ClusterState) -> None:
    """Keep the slot of a run whose launch is gone, or give it back when the run has ended."""
    if held.url != api.url or (record is not None and launch_alive(record) is not False and not held.left):
        return
    if slot_is_free(record, cluster, time()):
        slots.end(api, held)
    elif cluster.silent is None or cluster.silent < SILENT:
        slots.keep(api, held)


def read_record(run_id: str) -> RunRecord | None:
    """What the launch of this run noted at home; None where it noted nothing that can be read."""
    try:
        return RunRecord.from_json((home() / "runs" / f"{run_id}.json").read_text())
    except (OSError, ValueError, TypeError):
        return None


def launch_alive(record: RunRecord) -> bool | None:
    """Whether the process that launched the run lives; None where it can't be seen, since it is another host's."""
    if record.started is None or record.boot_id is None:
        return False
    if elsewhere(record.boot_id):
        return None
    return alive(Process(record.pid, record.started, record.boot_id))


def launch_goes_on(record: RunRecord) -> bool:
    """Whether a launch is worth waiting for: it lives, or it is another host's and has not had its time yet."""
    launched = launch_alive(record)
    if launched is None:
        return bool(record.waiting) or record.is_new(time())
    return launched


def cluster_state(record: RunRecord) -> ClusterState:
    """What the run's folders say; `unknown` for a cluster that is not this machine."""
    if record.kind != LOCAL:
        return ClusterState("unknown")
    ended = find_event(_events(record.paths), "call_ended")
    return ClusterState(
        head_state(RunPaths(record.paths.root, record.allocation)), Ended.from_event(ended) if ended else None
    )


def carry_out(api: Api, flow_run: dict[str, Any], decided: Verdict) -> None:
    """Tells Prefect what the verdict says."""
    if decided.action is Action.END:
        state = {"type": decided.state, "message": decided.message}
        api.post(f"/flow_runs/{flow_run['id']}/set_state", {"state": state, "force": True})
        _end_tasks(api, flow_run["id"], state)
        return
    if decided.action in {Action.CANCEL, Action.KEEP}:
        api.post("/events", [_heartbeat(flow_run)])


def _end_tasks(api: Api, flow_run_id: str, state: dict[str, Any]) -> None:
    """The steps that a killed process left as running, which Prefect would show as going on for ever."""
    wanted = {"flow_run_id": {"any_": [flow_run_id]}, "state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    for task_run in api.post("/task_runs/filter", {"task_runs": wanted}):
        api.post(f"/task_runs/{task_run['id']}/set_state", {"state": state, "force": True})


def active_runs(api: Api) -> list[dict[str, Any]]:
    """All flow runs of ours that have not ended.

    Raises:
        ServerError: the server can't be reached.
    """
    wanted = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": ACTIVE}}}
    found: list[dict[str, Any]] = []
    while True:
        page = {"flow_runs": wanted, "limit": PAGE, "offset": len(found), "sort": "ID_DESC"}
        more = api.post("/flow_runs/filter", page)
        found += more
        if len(more) < PAGE:
            return found


def head_state(paths: RunPaths) -> HeadState:
    """What became of the head of an allocation on this machine."""
    allocated = find_event(_events(paths), "allocated")
    if allocated is None:
        return "absent"
    if allocated.get("started") is None:
        return "unknown"
    alive = alive_as_noted(allocated)
    return "unknown" if alive is None else "alive" if alive else "dead"


def _events(paths: RunPaths) -> list[dict[str, Any]]:
    try:
        return parse_events(Path(paths.events).read_bytes())[0]
    except OSError:
        return []


def _heartbeat(flow_run: dict[str, Any]) -> dict[str, Any]:
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in flow_run["tags"]]
    return {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(timezone.utc).isoformat(),
        "event": HEARTBEAT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{flow_run['id']}"},
        "related": tags,
    }
