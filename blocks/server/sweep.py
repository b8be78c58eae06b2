"""The sweep over active flow runs whose launching process is gone, and the watch over such runs on clusters."""

from __future__ import annotations

import contextlib
import datetime
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
from slurm_ray_flow.blocks.server.automation import HEARTBEAT, MESSAGE
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, only_process, server_files
from slurm_ray_flow.core.errors import ConnectionFailed, ServerError
from slurm_ray_flow.core.prefect_events import PrefectEvent, run_failed
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.run_state import RunFacts
from slurm_ray_flow.core.sweep import TAG, Action, SweepDecision, decide, slot_is_free

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]
CRASHED = "CRASHED"
RECENT = datetime.timedelta(days=7)
"""How long a run whose heartbeats failed to come is looked after."""
PAGE = 200
"""The most flow runs in one answer of Prefect."""


def sweep(api: Api) -> Iterator[str]:
    """Settle all active runs of this home, and give a line about each change.

    Raises:
        ServerError: the server can't be reached.
    """
    for flow_run, record in recorded_runs(api):
        cancel = partial(Path(record.paths.cancel).touch, mode=0o600)
        try:
            yield from settle_run(api, flow_run, run_facts.read_here(record), cancel)
        except ServerError:
            raise
        except Exception as error:  # the damaged files of one run must not keep the others from being settled
            yield f"run {record.run_id}: can't be judged: {type(error).__name__}: {error}"
    settle_slots(api)


def settle_run(api: Api, flow_run: dict[str, Any], facts: RunFacts, cancel: Callable[[], None]) -> Iterator[str]:
    """Decide about one run, and carry the decision out; `cancel` makes the run's head cancel it."""
    decision = decide(facts, flow_state=flow_run["state_type"])
    if decision.action is Action.CANCEL:
        cancel()
    if decision.action is Action.KEEP and flow_run["state_type"] == CRASHED:
        _revive(api, flow_run)
        yield f"run {facts.record.run_id}: goes on"
        return
    send_decision(api, flow_run, decision)
    if decision.action is Action.END and decision.state in {"FAILED", "CRASHED"}:
        api.post("/events", [run_failed(facts.record, decision.cause, decision.message).body()])
    if decision.action in {Action.CANCEL, Action.END}:
        yield f"run {facts.record.run_id}: {decision.action.value} {decision.state} {decision.text}".rstrip()


def recorded_runs(api: Api) -> Iterator[tuple[dict[str, Any], RunRecord]]:
    """The active and the silent flow runs with a record at this home; the server's automation ends all others."""
    for flow_run in [*active_runs(api), *silent_runs(api)]:
        record = store.known_record(flow_run["id"])
        if record is not None:
            yield flow_run, record


def silent_runs(api: Api) -> list[dict[str, Any]]:
    """The newest flow runs that the server's automation has ended for want of heartbeats.

    They may go on, or have ended well: a laptop that slept, or a very busy machine, sent none.

    Raises:
        ServerError: the server can't be reached.
    """
    since = datetime.datetime.now(datetime.timezone.utc) - RECENT
    query = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": [CRASHED]}}, "end_time": {"after_": since.isoformat()}}
    crashed = api.post("/flow_runs/filter", {"flow_runs": query, "limit": PAGE, "sort": "END_TIME_DESC"})
    return [flow_run for flow_run in crashed if flow_run["state"]["message"] == MESSAGE]


def _revive(api: Api, flow_run: dict[str, Any]) -> None:
    """Show a run as running again."""
    state = {"type": "RUNNING", "message": "Its heartbeats failed to come for a while; the run goes on."}
    api.post(f"/flow_runs/{flow_run['id']}/set_state", {"state": state, "force": True})


def settle_slots(api: Api) -> None:
    """Settle the slots of runs on this machine whose launch is gone.

    Raises:
        ServerError: the server can't be reached.
    """
    for held in concurrency_limit.noted():
        record = store.known_record(held.run_id)
        if record is None or record.kind == LOCAL:
            settle_slot(api, held, run_facts.read_here(record) if record else None)


def settle_slot(api: Api, held: HeldSlot, facts: RunFacts | None) -> None:
    """Keep the slot of a run whose launch is gone, or give it back when the run has ended."""
    if held.url != api.url or (facts is not None and facts.launch_alive is not False and not held.left):
        return
    if slot_is_free(facts):
        concurrency_limit.end(api, held)
    else:
        concurrency_limit.keep(api, held)


def send_decision(api: Api, flow_run: dict[str, Any], decision: SweepDecision) -> None:
    """Send a decision to Prefect: the final state, or a heartbeat."""
    if decision.action is Action.END:
        state = {"type": decision.state, "message": decision.text}
        api.post(f"/flow_runs/{flow_run['id']}/set_state", {"state": state, "force": True})
        _end_tasks(api, flow_run["id"], state)
        return
    if decision.action in {Action.CANCEL, Action.KEEP}:
        api.post("/events", [_heartbeat(flow_run)])


def _end_tasks(api: Api, flow_run_id: str, state: dict[str, Any]) -> None:
    """Give the final state also to the steps of a flow run, which Prefect would show as running for ever."""
    query = {"flow_run_id": {"any_": [flow_run_id]}, "state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    for task_run in api.post("/task_runs/filter", {"task_runs": query}):
        api.post(f"/task_runs/{task_run['id']}/set_state", {"state": state, "force": True})


def active_runs(api: Api) -> list[dict[str, Any]]:
    """All flow runs of this package that have not ended.

    Raises:
        ServerError: the server can't be reached.
    """
    query = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": ACTIVE}}}
    flow_runs: list[dict[str, Any]] = []
    while True:
        page = {"flow_runs": query, "limit": PAGE, "offset": len(flow_runs), "sort": "ID_DESC"}
        batch = api.post("/flow_runs/filter", page)
        flow_runs += batch
        if len(batch) < PAGE:
            return flow_runs


def _heartbeat(flow_run: dict[str, Any]) -> dict[str, Any]:
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in flow_run["tags"]]
    return PrefectEvent(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{flow_run['id']}"}, {}, tags).body()


ASK_SECONDS, SLOT_SECONDS = 30.0, 5.0
"""Seconds between two questions to clusters; fewer if a run holds a slot of a shared server."""
POLL_SECONDS = 0.5
IDLE_ROUNDS = 3
"""The rounds without anything to watch after which the watch ends."""
RETRY_SECONDS, LOG_IN_SECONDS = 60.0, 3600.0
"""Seconds before another question to a cluster that did not answer, and to one that refused the log-in: sites block
accounts for frequent log-ins."""


class Clusters:
    """The clusters of orphaned runs, each with one connection, and since when each has not answered."""

    def __init__(self) -> None:
        self._clusters: dict[str, Cluster] = {}
        self._silent: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}

    def facts(self, record: RunRecord) -> RunFacts:
        """The facts of a run from its cluster."""
        name, now = f"{record.kind}/{record.cluster}", time.monotonic()
        if now < self._retry_at.get(name, 0.0):
            return self._unanswered(name, record)
        try:
            facts = run_facts.ask(record, self._cluster(name, record))
        except Exception as error:  # an error of one cluster must not keep the others from being asked
            refused = isinstance(error, ConnectionFailed) and not error.transient
            self._retry_at[name] = now + (LOG_IN_SECONDS if refused else RETRY_SECONDS)
            self._clusters.pop(name, None)
            sys.stderr.write(f"orphans: {name} gives no answer: {error}\n")
            return self._unanswered(name, record)
        self._silent.pop(name, None)
        return facts

    def cancel(self, record: RunRecord) -> None:
        """Ask a run's head to cancel it."""
        cluster = self._clusters.get(f"{record.kind}/{record.cluster}")
        if cluster is not None:
            cluster.cancel(record.paths)

    def _cluster(self, name: str, record: RunRecord) -> Cluster:
        from slurm_ray_flow.blocks.clusters import cluster_of

        if name not in self._clusters:
            self._clusters[name] = cluster_of(record)
        return self._clusters[name]

    def _unanswered(self, name: str, record: RunRecord) -> RunFacts:
        since = self._silent.setdefault(name, time.monotonic())
        return RunFacts(record, silent=time.monotonic() - since, launch_alive=launch_alive(record))


def watch_once(api: Api, clusters: Clusters) -> Iterator[str]:
    """Settle all orphaned runs on clusters, and the slots of dead launches; gives a line about each change.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    for flow_run, record in recorded_runs(api):
        if _is_orphan(record):
            with contextlib.suppress(ConnectionFailed):
                yield from settle_run(api, flow_run, clusters.facts(record), partial(clusters.cancel, record))
    for held, record in orphan_slots(api):
        settle_slot(api, held, clusters.facts(record))


def _is_orphan(record: RunRecord) -> bool:
    return record.kind != LOCAL and not record.waiting and not launch_alive(record)


def orphan_slots(api: Api) -> list[tuple[HeldSlot, RunRecord]]:
    """The slots of shared servers whose run's launch is gone."""
    return [
        (held, record)
        for held in concurrency_limit.noted()
        if held.url == api.url and (record := store.known_record(held.run_id))
        if record.kind != LOCAL and (held.left or not launch_alive(record))
    ]


def has_orphans(api: Api) -> bool:
    """Whether there are orphaned runs on clusters, or slots of such runs.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    return bool(orphan_slots(api) or orphaned_runs(api))


def orphaned_runs(api: Api) -> list[dict[str, Any]]:
    """The flow runs on clusters whose launch is gone.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    return [flow_run for flow_run, record in recorded_runs(api) if _is_orphan(record)]


def ensure_watch(files: ServerFiles, api: Api) -> Iterator[str]:
    """Start the watch as a process, if there are orphans and it does not run yet; for the supervisor.

    A heartbeat of each bridges the time until the watch has its cluster's answer, which on a slow machine may be longer
    than the server's automation waits for one.

    Raises:
        ServerError: Prefect's server can't be reached.
    """
    with only_process(files, f"orphans-{socket.gethostname()}") as is_only:
        pass
    orphans = orphaned_runs(api) if is_only else []
    if not is_only or not (orphans or orphan_slots(api)):
        return
    if active := [flow_run for flow_run in orphans if flow_run["state_type"] != CRASHED]:
        api.post("/events", list(map(_heartbeat, active)))
    processes.start(
        [sys.executable, "-m", "slurm_ray_flow.blocks.server.sweep"],
        log=files.folder / "orphans.log",
        env=dict(os.environ),  # with the passwords: it logs in
        cwd=files.prefect_home,  # Prefect reads settings from the folder it starts in
    )
    yield "runs elsewhere have lost their launching process: they are watched from here"


def main() -> int:
    """Watch until there are no orphans any more, or the supervisor is gone."""
    files = server_files()
    state = read_state(files)
    if state is None:
        return 1
    with only_process(files, f"orphans-{socket.gethostname()}") as is_only:
        if is_only:
            from slurm_ray_flow.blocks.server.client import connect

            connect(state.address())
            _watch(Api(state.url, auth_string(files)), lambda: alive(state.supervisor))
    return 0


def _watch(api: Api, goes_on: Callable[[], bool]) -> None:
    clusters, idle_rounds, next_round = Clusters(), 0, 0.0
    while idle_rounds < IDLE_ROUNDS and goes_on():
        if time.monotonic() >= next_round:
            try:
                for line in watch_once(api, clusters):
                    sys.stderr.write(f"orphans: {line}\n")
                idle_rounds = 0 if has_orphans(api) else idle_rounds + 1
            except ServerError as problem:
                sys.stderr.write(f"orphans: {problem}\n")
            next_round = time.monotonic() + (SLOT_SECONDS if orphan_slots(api) else ASK_SECONDS)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
