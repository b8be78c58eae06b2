"""Picking up a run: its last process died, and the run goes on with the try that is on the cluster.

Prefect starts a flow run again under the same id: a deployment's after its process was killed, any one by
`prefect flow-run retry`.
"""

from __future__ import annotations

import json
import time

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.run_facts import ask
from slurm_ray_flow.core.launch_events import Note, publish
from slurm_ray_flow.core.run_state import run_state
from slurm_ray_flow.tasks import warm
from slurm_ray_flow.tasks.run import Run
from slurm_ray_flow.tasks.start_ray import wait_ready


def left_behind(run: Run, cluster: Cluster) -> bool:
    """Whether the cluster has a try of this run from an earlier process: waiting, running or with an outcome.

    Where it has none, the run is ready for a try of its own.

    Raises:
        ConnectionFailed: the cluster does not answer, so the try may still be there.
    """
    if not run.handed_over:
        return False
    if not _is_there(run, cluster):
        run.begin_again()
        run.note(created=time.time())
        return False
    publish(Note(f"picks up run {run.record.run_id[:8]} on {cluster.label}, which its process left there"))
    return True


def lost_what_was_left(run: Run) -> None:
    """The try that was picked up has left no word: make room for another one."""
    publish(Note("what its process left there is gone without a word; starts again"))
    run.begin_again()


def see_it_start(run: Run, cluster: Cluster) -> None:
    """Wait as a launch does: its process may have died while the run waited for its turn, or for its nodes."""
    if run.record.allocation == run.record.attempt:
        spec = json.loads(cluster.read(run.paths.spec))
        if spec["lock"]:  # as start_ray does: the wait may be long, and the process may have died before it did
            cluster.announce(run.paths.inbox(run.record.allocation))
        wait_ready(run, spec, cluster)


def offer_what_is_warm(run: Run, cluster: Cluster) -> None:
    """List the picked-up run's warm allocation for later calls, since its process may have died before."""
    if run.record.warm and run.record.allocation == run.record.attempt and cluster.scheduler is None:
        warm.offer(run, json.loads(cluster.read(run.paths.spec)), cluster)


def _is_there(run: Run, cluster: Cluster) -> bool:
    if run.paths.cancel.name in cluster.names(run.paths.folder):
        return False
    facts = ask(run.record, cluster)
    if call_end := run_state(facts).call_end:
        return call_end.outcome is not None
    own = run.record.allocation == run.record.attempt
    if facts.head_alive and cluster.scheduler is not None and own and not facts.events:
        cluster.submit(run.paths, json.loads(cluster.read(run.paths.spec)))  # the process may have died before that
    return facts.head_alive
