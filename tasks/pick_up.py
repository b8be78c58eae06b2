"""The pick-up of a run whose process died: the run goes on with its try on the cluster.

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


def try_is_left(run: Run, cluster: Cluster) -> bool:
    """Whether the cluster has a try of this run from an earlier process: waiting, running or with an outcome.

    Without such a try, the run is ready for a new one.

    Raises:
        ConnectionFailed: the cluster does not answer, and may still have the try.
    """
    if not run.handed_over:
        return False
    if not _try_is_usable(run, cluster):
        run.begin_next_try()
        run.note(created=time.time())
        return False
    publish(Note(f"picks up run {run.record.run_id[:8]} on {cluster.label}, which its process left there"))
    return True


def replace_lost_try(run: Run) -> None:
    """Begin a new try after the picked-up one was lost."""
    publish(Note("what its process left there is gone without a word; starts again"))
    run.begin_next_try()


def await_start(run: Run, cluster: Cluster) -> None:
    """Wait until a picked-up try can take its call: the process may have died before that."""
    if run.record.allocation == run.record.attempt:
        spec = json.loads(cluster.read(run.paths.spec))
        if spec["lock"]:  # as `start_ray` does: the process may have died before that
            cluster.announce(run.paths.inbox(run.record.allocation))
        wait_ready(run, spec, cluster)


def offer_warm_allocation(run: Run, cluster: Cluster) -> None:
    """List the picked-up run's warm allocation for later calls: the process may have died before that."""
    if run.record.warm and run.record.allocation == run.record.attempt and cluster.scheduler is None:
        warm.offer(run, json.loads(cluster.read(run.paths.spec)), cluster)


def _try_is_usable(run: Run, cluster: Cluster) -> bool:
    if run.paths.cancel.name in cluster.names(run.paths.folder):
        return False
    facts = ask(run.record, cluster)
    if call_end := run_state(facts).call_end:
        return call_end.outcome is not None
    has_own_allocation = run.record.allocation == run.record.attempt
    if facts.head_alive and cluster.scheduler is not None and has_own_allocation and not facts.events:
        cluster.submit(run.paths, json.loads(cluster.read(run.paths.spec)))  # the process may have died before that
    return facts.head_alive
