"""The step that gets an allocation with a Ray cluster that can take calls."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.run_facts import liveness_of
from slurm_ray_flow.core.interruption import interrupted
from slurm_ray_flow.core.launch_events import Detachable, Note, Placed, publish
from slurm_ray_flow.core.lock import queued_state
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.run import Event, error_of, find_event, parse_events
from slurm_ray_flow.tasks import warm
from slurm_ray_flow.tasks.diff_dependencies import wants_ray
from slurm_ray_flow.tasks.install_environment import Environment
from slurm_ray_flow.tasks.prepared import Prepared
from slurm_ray_flow.tasks.retry import step
from slurm_ray_flow.tasks.run import Call, Run, error_of_lost_head, where
from slurm_ray_flow.tasks.turn import WaitReport, reason_to_wait

LIVENESS_SECONDS = 1.0
"""Seconds between two questions whether the head is alive."""


@step()
def start_ray(
    run: Run, call: Call, prepared: Prepared, cluster: Cluster, options: Options, lock: dict[str, Any] | None
) -> None:
    """Put the run's files on the cluster, start its head or find a warm one, and wait until it can take calls.

    Raises:
        Rejected: the cluster refuses what is asked for.
        EnvironmentFailed: the head or Ray could not start.
        Cancelled: somebody cancelled the flow run.
    """
    spec = {**_spec(run, prepared, cluster, options), "pilot": call.pilot and dict(call.pilot), "lock": lock}
    _put_files(run, call, spec, _script(run, prepared.environment, cluster), cluster)
    run.hand_over()
    if options.keep_warm:
        if allocation := warm.take(run, spec, cluster):
            publish(Note(f"joins the warm Ray cluster of run {allocation[:8]}"))
            run.note(allocation=allocation)
            return
        if why := warm.why_not_joined(run, spec, cluster):
            publish(Note(why))
    run.note(warm=bool(options.keep_warm))
    cluster.submit(run.paths, spec)
    publish(Placed())
    if cluster.scheduler is not None:  # the run's folder has the call already: home may end
        publish(Detachable())
    if lock:  # the wait may be long: now the run goes on also if home ends
        cluster.announce(run.paths.inbox(run.record.allocation))
    wait_ready(run, spec, cluster)
    if options.keep_warm:
        warm.offer(run, spec, cluster)


def _spec(run: Run, prepared: Prepared, cluster: Cluster, options: Options) -> dict[str, Any]:
    snapshot, environment = prepared.snapshot, prepared.environment
    return {
        "format": 1,
        "run_id": run.record.attempt,
        "python": environment.python,
        "isolated": environment.isolated,
        "packed": environment.packed,
        "container": prepared.container,
        "ray": wants_ray(prepared.code, options),
        "dashboard": options.dashboard,
        "nodes": options.nodes,
        "cpus": options.cpus_per_node,
        "gpus": options.gpus_per_node,
        "memory": options.memory,
        "time_limit": options.time_limit,
        "scheduler": _scheduler(run, cluster, options),
        "warn_seconds": options.warn_seconds,
        "keep_warm": options.keep_warm,
        "keep": options.keep,
        "snapshot": snapshot.folder,
        "path": list(snapshot.path),
        "working_directory": snapshot.working_directory,
        "environment_variables": dict(options.env_vars),
        "folders": snapshot.folders,
        "argv": list(prepared.argv),
        "recursion_limit": prepared.recursion_limit,
    }


def _scheduler(run: Run, cluster: Cluster, options: Options) -> dict[str, Any] | None:
    """The scheduler's options of the run or the block, such as the partition; None without a scheduler."""
    if cluster.scheduler is None:
        return None
    asked = {name: getattr(options, name, None) or getattr(cluster, name, None) for name in warm.ASKED_OF_THE_SCHEDULER}
    return {"name": run.record.function, **{name: value for name, value in asked.items() if value}}


def _script(run: Run, environment: Environment, cluster: Cluster) -> str:
    """The text of the run's start script."""
    head = cluster.prepare() / "slurm_ray_flow" / "remote" / "head" / "head.py"
    facts = None if environment.container else cluster.facts()
    python, variables = (facts.python, facts.variables) if facts else (environment.python, {})
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    return script_of(cluster, [python, "-I", str(head), str(cluster.root_folder), run.record.attempt], exports)


def script_of(cluster: Cluster, command: list[str], exports: str = "") -> str:
    """The text of a script that starts a head with this command."""
    return f'{_script_start(cluster)}{exports}exec {shlex.join(command)} "$@"\n'


def _put_files(run: Run, call: Call, spec: dict[str, Any], script: str, cluster: Cluster) -> None:
    """Write the spec, the start script and the call's payloads into the run's folder."""
    arguments = _place_values(run, call, cluster) if call.values else call.arguments
    files: dict[PurePosixPath, bytes | Path] = {
        run.paths.spec: json.dumps(spec).encode(),
        run.paths.script: script.encode(),
        run.paths.function: store.object_path(call.function),
        run.paths.arguments: store.object_path(arguments),
    }
    if cluster.scheduler is not None:  # home may have ended before the head begins
        files[run.paths.inbox(run.record.attempt)] = b""
    cluster.place(files)


def _place_values(run: Run, call: Call, cluster: Cluster) -> str:
    """Have the run's folder keep the values of other runs there, whatever becomes of them; gives the arguments' digest.

    Values that are gone, since a clean-up has removed their runs, are sent from home.
    """
    links = [{"path": one.path, "target": str(run.paths.values / one.sha256), "size": one.size} for one in call.values]
    found = cluster.ask_all([("files.link", link) for link in links])
    missing = frozenset(one.sha256 for one, there in zip(call.values, found, strict=True) if not there)
    if not missing:
        publish(Note(f"takes {format_memory(sum(one.size for one in call.values))} of other runs' values from there"))
        return call.arguments
    assert call.inline is not None
    publish(Note(f"{cluster.label} no longer has a value of another run, which is sent from home"))
    return call.inline(missing)


def _script_start(cluster: Cluster) -> str:
    return f"#!/bin/bash\n{cluster.preamble}" if cluster.preamble else "#!/bin/sh\n"


def wait_ready(run: Run, spec: dict[str, Any], cluster: Cluster) -> None:
    """Wait for the head, which bounds its own start: it records `ray_ready`, or `call_ended` with a cause, or ends."""
    asked_at, offset = time.monotonic(), 0
    report = WaitReport(run, queued_state(cluster.label), f"has {cluster.label} now")
    events: list[Event] = []
    while True:
        interrupted()
        due = time.monotonic() - asked_at >= LIVENESS_SECONDS
        liveness = liveness_of(run.record, cluster, events) if due else None
        [data] = cluster.watch([(run.paths.events, offset)], cluster.watch_seconds)
        new_events, length = parse_events(data)
        offset += length
        events += new_events
        if find_event(events, _ready_event(spec)):
            report.show("")
            publish(Placed(find_event(events, "allocated")))
            _publish_ray_size(events)
            return
        if ended := find_event(events, "call_ended"):
            raise error_of(ended.get("cause") or "", ended.get("message") or "", where(run.record))
        if liveness is not None:
            asked_at = time.monotonic()
            if not liveness.alive:
                raise error_of_lost_head(liveness, "the head ended while it started", where(run.record))
        report.show(reason_to_wait(cluster, events, liveness))


def _ready_event(spec: dict[str, Any]) -> str:
    if spec["ray"]:
        return "ray_ready"
    return "lock_held" if spec["lock"] else "allocated"


def _publish_ray_size(events: list[Event]) -> None:
    if ready := find_event(events, "ray_ready"):
        gpus = f", {ready['gpus']} GPUs" if ready.get("gpus") else ""
        hosts = ready.get("nodes") or [ready["host"]]
        hosts_text = f"{', '.join(hosts[:3])} and {len(hosts) - 3} more" if len(hosts) > 4 else ", ".join(hosts)
        publish(Note(f"Ray on {hosts_text}: {ready['cpus']} CPU{'s' if ready['cpus'] != 1 else ''}{gpus}"))
