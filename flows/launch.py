"""The launch: the way of a call to a cluster, and of its outcome home."""

from __future__ import annotations

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.errors import ConnectionFailed, Lost, SlurmRayFlowError
from slurm_ray_flow.core.launch_events import CallEnded, Detachable, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.retries import Retries
from slurm_ray_flow.core.run import Outcome
from slurm_ray_flow.tasks.cancellation import cancellable
from slurm_ray_flow.tasks.diff_dependencies import diff_dependencies
from slurm_ray_flow.tasks.execute_call import execute_call
from slurm_ray_flow.tasks.fetch_outcome import outcome_of, outputs_brought
from slurm_ray_flow.tasks.install_environment import install_environment
from slurm_ray_flow.tasks.page import shown_in_prefect
from slurm_ray_flow.tasks.pick_up import left_behind, lost_what_was_left, offer_what_is_warm, see_it_start
from slurm_ray_flow.tasks.remember import key_of, recall, remember
from slurm_ray_flow.tasks.retry import begin_again
from slurm_ray_flow.tasks.run import Call, Run, where
from slurm_ray_flow.tasks.scan_imports import scan_imports
from slurm_ray_flow.tasks.start_ray import start_ray
from slurm_ray_flow.tasks.sync_files import sync_files
from slurm_ray_flow.tasks.turn import kept_turn, turn


def launch(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    """Run a call on a cluster, in further tries after failures for which the options allow them.

    Returns:
        The value, or the exception that the function raised.

    Raises:
        SlurmRayFlowError: the function did not get to an end; the error says why.
    """
    with run.end_noted(), cancellable(where(run.record)), shown_in_prefect(run, call, cluster, options):
        with outputs_brought(run, cluster, options):
            outcome = _tried(run, call, cluster, options)
        publish(CallEnded(outcome))
        return outcome


def _tried(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    retries = Retries(options)
    while True:
        try:
            outcome = _one_try(run, call, cluster, retries.options)
            failure: BaseException | None = outcome.exception
            again = retries.after(failure)
            if failure is None or again is None:
                return outcome
        except SlurmRayFlowError as error:
            failure, again = error, None if _goes_on(run, error) else retries.after(error)
            if again is None and (better := retries.explanation(error)):
                raise better from error
            if again is None:
                raise
        begin_again(run, failure, again, cluster)


def _goes_on(run: Run, error: SlurmRayFlowError) -> bool:
    """Whether the try may still run on an unreachable cluster: then another one would run beside it."""
    return run.handed_over and isinstance(error, ConnectionFailed)


def _one_try(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    """One try: a new one, or the one that an earlier process of this run left on the cluster."""
    if left_behind(run, cluster):
        try:
            return go_on(run, cluster, options)
        except Lost:
            lost_what_was_left(run)
    return attempt(run, call, cluster, options)


def go_on(run: Run, cluster: Cluster, options: Options) -> Outcome:
    """The last steps, for a try that is on the cluster already."""
    with kept_turn(run), run.released_at_the_end(cluster):
        see_it_start(run, cluster)
        ended = run.call_ended = execute_call(run, cluster)
        offer_what_is_warm(run, cluster)
        return outcome_of(run.record, ended, cluster, options)


def attempt(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    """The seven steps of a new try. An early end (an error, Ctrl-C, SIGTERM, a cancel) ends it on the cluster, too."""
    code = scan_imports(call)
    plan = diff_dependencies(code, cluster, options)
    snapshot = sync_files(code, cluster, options)
    environment = install_environment(plan, cluster)
    key = key_of(call, code, snapshot, environment, options)
    if known := recall(key, call, run, options):
        publish(Detachable())
        return known
    with turn(run, cluster, [snapshot.listing, environment.listing]) as lock, run.released_at_the_end(cluster):
        start_ray(run, call, code, snapshot, environment, cluster, options, lock)
        ended = run.call_ended = execute_call(run, cluster)
        outcome = outcome_of(run.record, ended, cluster, options)
    remember(key, run, ended, cluster)
    return outcome
