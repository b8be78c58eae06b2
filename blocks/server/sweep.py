"""One sweep: looks for active flow runs whose launching process is gone, and carries out the verdicts."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.blocks import concurrency_limit, processes, run_facts, store
from slurm_ray_flow.blocks.concurrency_limit import HeldSlot
from slurm_ray_flow.blocks.processes import alive
from slurm_ray_flow.blocks.run_facts import LOCAL, launch_alive
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.automation import HEARTBEAT
from slurm_ray_flow.blocks.server.files import ServerFiles, alone, auth_string, server_files
from slurm_ray_flow.core.errors import ConnectionFailed, ServerError
from slurm_ray_flow.core.prefect_events import PrefectEvent, run_failed
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.run_state import RunFacts
from slurm_ray_flow.core.sweep import TAG, Action, SweepDecision, slot_is_free, verdict

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]
PAGE = 200
"""So many flow runs Prefect gives with one answer."""


def sweep(api: Api) -> Iterator[str]:
    """Sees to all active runs of ours, and says in a line what it did about each.

    Raises:
        ServerError: the server can't be reached.
    """
    for flow_run, record in known_runs(api):
        cancel = partial(Path(record.paths.cancel).touch, mode=0o600)
        try:
            yield from judge(api, flow_run, run_facts.read_here(record), cancel)
        except ServerError:
            raise
        except Exception as error:  # of one run whose files are damaged; the others are seen to all the same
            yield f"run {record.run_id}: can't be judged: {type(error).__name__}: {error}"
    see_to_slots(api)


def judge(api: Api, flow_run: dict[str, Any], facts: RunFacts, cancel: Callable[[], None]) -> Iterator[str]:
    """Decides about one run and does it; `cancel` has its cluster end it."""
    decided = verdict(facts, flow_state=flow_run["state_type"])
    if decided.action is Action.CANCEL:
        cancel()
    carry_out(api, flow_run, decided)
    if decided.action is Action.END and decided.state in {"FAILED", "CRASHED"}:
        api.post("/events", [run_failed(facts.record, decided.cause, decided.message).body()])
    if decided.action in {Action.CANCEL, Action.END}:
        yield f"run {facts.record.run_id}: {decided.action.value} {decided.state} {decided.text}".rstrip()


def known_runs(api: Api) -> Iterator[tuple[dict[str, Any], RunRecord]]:
    """The active flow runs that were launched from this home.

    Those launched elsewhere, or not yet noted, are seen to by the server's automation.
    """
    for flow_run in active_runs(api):
        record = store.known_record(flow_run["id"])
        if record is not None:
            yield flow_run, record


def see_to_slots(api: Api) -> None:
    """Sees to the slots of runs on this machine whose launch is gone.

    Raises:
        ServerError: the server can't be reached.
    """
    for held in concurrency_limit.noted():
        record = store.known_record(held.run_id)
        if record is None or record.kind == LOCAL:
            see_to_slot(api, held, run_facts.read_here(record) if record else None)


def see_to_slot(api: Api, held: HeldSlot, facts: RunFacts | None) -> None:
    """Keep the slot of a run whose launch is gone, or give it back when the run has ended."""
    if held.url != api.url or (facts is not None and facts.launch_alive is not False and not held.left):
        return
    if slot_is_free(facts):
        concurrency_limit.end(api, held)
    else:
        concurrency_limit.keep(api, held)


def carry_out(api: Api, flow_run: dict[str, Any], decided: SweepDecision) -> None:
    """Tells Prefect what the verdict says."""
    if decided.action is Action.END:
        state = {"type": decided.state, "message": decided.text}
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


def _heartbeat(flow_run: dict[str, Any]) -> dict[str, Any]:
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in flow_run["tags"]]
    return PrefectEvent(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{flow_run['id']}"}, {}, tags).body()


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

    def facts(self, record: RunRecord) -> RunFacts:
        """What its cluster says of a run."""
        name, now = f"{record.kind}/{record.cluster}", time.monotonic()
        if now < self._again.get(name, 0.0):
            return self._unanswered(name, record)
        try:
            facts = run_facts.ask(record, self._cluster(name, record))
        except Exception as error:  # whatever it is, the other clusters are asked all the same
            refused = isinstance(error, ConnectionFailed) and not error.transient
            self._again[name] = now + (LOG_IN_SECONDS if refused else AGAIN_SECONDS)
            self._known.pop(name, None)
            sys.stderr.write(f"orphans: {name} gives no answer: {error}\n")
            return self._unanswered(name, record)
        self._silent.pop(name, None)
        return facts

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

    def _unanswered(self, name: str, record: RunRecord) -> RunFacts:
        since = self._silent.setdefault(name, time.monotonic())
        return RunFacts(record, silent=time.monotonic() - since, launch_alive=launch_alive(record))


def look(api: Api, clusters: Clusters) -> Iterator[str]:
    """Sees once to all that nobody else sees to, and says in a line what it did.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    for flow_run, record in known_runs(api):
        if _orphan(record):
            with contextlib.suppress(ConnectionFailed):
                yield from judge(api, flow_run, clusters.facts(record), partial(clusters.cancel, record))
    for held, record in orphan_slots(api):
        see_to_slot(api, held, clusters.facts(record))


def _orphan(record: RunRecord) -> bool:
    return record.kind != LOCAL and not record.waiting and not launch_alive(record)


def orphan_slots(api: Api) -> list[tuple[HeldSlot, RunRecord]]:
    """The slots of shared servers that runs hold whose launch is gone."""
    found = [
        (held, record)
        for held in concurrency_limit.noted()
        if held.url == api.url and (record := store.known_record(held.run_id))
    ]
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
    processes.start(
        [sys.executable, "-m", "slurm_ray_flow.blocks.server.sweep"],
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
