"""The launch: it brings a call to a cluster and the outcome home."""

from __future__ import annotations

from collections.abc import Callable

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.errors import ConnectionFailed, Lost, SlurmRayFlowError
from slurm_ray_flow.core.launch_events import CallEnded, Detachable, FilesReady, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.retries import Retries
from slurm_ray_flow.core.run import CallEnd, Outcome
from slurm_ray_flow.tasks.cancellation import cancellable
from slurm_ray_flow.tasks.diff_dependencies import diff_dependencies
from slurm_ray_flow.tasks.execute_call import execute_call
from slurm_ray_flow.tasks.fetch_outcome import outcome_of, outputs_brought
from slurm_ray_flow.tasks.install_environment import install_environment
from slurm_ray_flow.tasks.page import shown_in_prefect
from slurm_ray_flow.tasks.pick_up import await_start, offer_warm_allocation, replace_lost_try, try_is_left
from slurm_ray_flow.tasks.prepared import Prepared, use_prepared
from slurm_ray_flow.tasks.remember import key_of, recall, remember
from slurm_ray_flow.tasks.retry import begin_next_try
from slurm_ray_flow.tasks.run import Call, Run, where
from slurm_ray_flow.tasks.scan_imports import scan_imports
from slurm_ray_flow.tasks.start_ray import start_ray
from slurm_ray_flow.tasks.sync_files import sync_files
from slurm_ray_flow.tasks.turn import resumed_turn, turn


def launch(run: Run, describe: Callable[[], Call], cluster: Cluster, options: Options) -> Outcome:
    """Run a call on a cluster, in further tries after failures for which the options allow them.

    Args:
        run: the run.
        describe: gives the call, after a wait for the values of other runs that it has as arguments.
        cluster: the cluster.
        options: the options.

    Returns:
        The value, or the exception that the function raised.

    Raises:
        SlurmRayFlowError: the function did not get to an end; the error says why.
    """
    with run.end_noted(), cancellable(where(run.record)), shown_in_prefect(run, cluster, options):
        call = describe()
        with outputs_brought(run, cluster, options):
            outcome = _run_tries(run, call, cluster, options)
        publish(CallEnded(outcome))
        return outcome


def _run_tries(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    retries = Retries(options)
    while True:
        try:
            outcome = _one_try(run, call, cluster, retries.options)
            failure: BaseException | None = outcome.exception
            next_try = retries.after(failure)
            if failure is None or next_try is None:
                return outcome
        except SlurmRayFlowError as error:
            failure, next_try = error, None if _may_still_run(run, error) else retries.after(error)
            if next_try is None and (better := retries.explanation(error)):
                raise better from error
            if next_try is None:
                raise
        begin_next_try(run, failure, next_try, cluster)


def _may_still_run(run: Run, error: SlurmRayFlowError) -> bool:
    """Whether the try may still run on an unreachable cluster, where another try would run beside it."""
    return run.handed_over and isinstance(error, ConnectionFailed)


def _one_try(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    """One try: a new one, or the one that an earlier process of this run left on the cluster."""
    if try_is_left(run, cluster):
        try:
            return resume_try(run, cluster, options)
        except Lost:
            replace_lost_try(run)
    return attempt(run, call, cluster, options)


def resume_try(run: Run, cluster: Cluster, options: Options) -> Outcome:
    """The last steps of a try that is on the cluster already."""
    with resumed_turn(run), run.released_at_the_end(cluster):
        await_start(run, cluster)
        call_end = run.call_ended = execute_call(run, cluster)
        offer_warm_allocation(run, cluster)
        return outcome_of(run, call_end, cluster, options)


def attempt(run: Run, call: Call, cluster: Cluster, options: Options) -> Outcome:
    """The seven steps of a new try. An early end (error, Ctrl-C, SIGTERM, cancel) ends the try on the cluster, too."""
    prepared = prepare(call, cluster, options)
    key = key_of(call, prepared.code, prepared.snapshot, prepared.environment, options)
    if remembered := recall(key, call, run, options):
        publish(Detachable())
        return remembered
    call_end, outcome = run_prepared(run, call, prepared, cluster, options)
    remember(key, run, call_end, cluster)
    return outcome


def prepare(call: Call, cluster: Cluster, options: Options) -> Prepared:
    """The steps before a run: files and environment come to the cluster, unless an earlier process has seen to it.

    Raises:
        SlurmRayFlowError: the code can't be scanned or sent, or the environment not be built.
    """
    if call.prepared:
        earlier = Prepared.from_json(call.prepared)
        use_prepared(earlier, cluster)
        return earlier
    code = scan_imports(call)
    plan = diff_dependencies(code, cluster, options)
    snapshot = sync_files(code, cluster, options)
    prepared = Prepared.here(code, snapshot, install_environment(plan, cluster), cluster)
    publish(FilesReady(prepared.to_json()))
    return prepared


def run_prepared(
    run: Run, call: Call, prepared: Prepared, cluster: Cluster, options: Options
) -> tuple[CallEnd, Outcome]:
    """The steps of the run itself.

    Raises:
        RunError: there is no outcome; the error's type says why.
    """
    with turn(run, cluster, prepared.listings) as lock, run.released_at_the_end(cluster):
        start_ray(run, call, prepared, cluster, options, lock)
        call_end = run.call_ended = execute_call(run, cluster)
        return call_end, outcome_of(run, call_end, cluster, options)
