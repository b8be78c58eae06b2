"""The launch of a pilot from what was prepared, by a process that need not have prepared it."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from httpx import HTTPError
from prefect import Flow, Task, get_client, tags
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import TagsContext
from prefect.exceptions import PrefectException
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled as CancelledState
from prefect.states import Failed, Pending

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import remember
from slurm_ray_flow.blocks.server.client import server_error
from slurm_ray_flow.core.artifacts import flow_run_name, tags_of
from slurm_ray_flow.core.errors import Cancelled
from slurm_ray_flow.core.launch_events import CallEnded, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import Outcome
from slurm_ray_flow.core.scan import FunctionSource
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.flows.launch import prepare, run_prepared
from slurm_ray_flow.tasks.cancellation import cancellable, in_background
from slurm_ray_flow.tasks.page import reported_once, shown_in_prefect
from slurm_ray_flow.tasks.prepared import Prepared, use_prepared
from slurm_ray_flow.tasks.run import Call, Run, where

__all__ = ["Prepared", "call_of_pilot", "pilot", "prepare", "prepare_pilots", "run_pilot"]

NAME = "pilot"
"""The name of the flow."""


def call_of_pilot(function: str, arguments: str, label: str, settings: Mapping[str, Any]) -> Call:
    """The call of a pilot, whose function was scanned when it was prepared.

    Args:
        function, arguments: digests of the two payloads in the store at home; the arguments are those that all items
            share.
        label: the function's name, for people.
        settings: `workers`, `idle_seconds`, `threads`, `gpus_per_item` (`remote/driver/pilot.py` `serve`).
    """
    return Call(function, arguments, FunctionSource(None, None, None, label, 1, ()), label, pilot=dict(settings))


def prepare_pilots(call: Call, cluster: Cluster, options: Options) -> Prepared:
    """What `prepare` gives, as a flow run of its own. For a connected process.

    Raises:
        SlurmRayFlowError: the cluster can't be reached, or what the function needs can't be there.
    """

    def body() -> Prepared:
        with TagsContext(current_tags=set()), reported_once():
            return prepare(call, cluster, options)

    name = flow_run_name(f"prepare {call.label}", cluster.label, options.nodes)
    flow: Flow[[], Prepared] = Flow(body, name="prepare", flow_run_name=name, persist_result=False)
    settings = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with settings, tags(*sorted(tags_of(call.label, cluster.label, cluster.kind))):
        return flow()


def pilot(run: Run, call: Call, cluster: Cluster, options: Options, prepared: Prepared) -> Outcome:
    """Run a pilot on a cluster, once. Its value is its summary, its exception that of a function that can't be loaded.

    Raises:
        EnvironmentFailed: what was prepared is gone from the cluster.
        SlurmRayFlowError: the pilot did not get to an end; the error says why.
    """
    with run.end_noted(), cancellable(where(run.record)), shown_in_prefect(run, cluster, options):
        use_prepared(prepared, cluster)
        _, outcome = run_prepared(run, call, prepared, cluster, options)
        publish(CallEnded(outcome))
        return outcome


def run_pilot(
    call: Call,
    cluster: Cluster,
    options: Options,
    prepared: Prepared,
    on_run_id: Callable[[str], object],
    cancelled: threading.Event | None = None,
    more_tags: Iterable[str] = (),
    parent: str = "",
) -> Outcome:
    """Run a pilot as a flow run of its own; returns when the pilot has ended. For a thread of a connected process.

    Args:
        call: from `call_of_pilot`.
        cluster: where the pilot runs.
        options: the options of its run, complete.
        prepared: what `prepare` gave, in whichever process.
        on_run_id: gets the id of the run, which has a record at home by then, before anything is submitted. What it
            raises ends the launch.
        cancelled: ends the run and the launch when it is set.
        more_tags: tags of the flow run, besides those of all launches.
        parent: the flow run that shows this one as its child; "" for none.

    Raises:
        ServerError: Prefect's server does not answer, and nothing was submitted.
        SlurmRayFlowError: as for `pilot`.
    """
    launch = _Launch(call, cluster, options, prepared, on_run_id)
    remember(cluster)
    all_tags = sorted({*tags_of(call.label, cluster.label, cluster.kind), *more_tags})
    # Prefect's heartbeat thread delays the end of each sync run by a second; `Heartbeat` does without a thread.
    settings = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with in_background(cancelled), settings, tags(*all_tags):
        try:
            flow = launch.as_flow()
            run_flow(flow, flow_run=child_of(parent, flow) if parent else None, return_type="state")
        except Exception as error:
            if launch.outcome is None and launch.error is None:
                raise (server_error(error) or error) from None
    if launch.outcome is not None:  # also where Prefect's server has died under the launch
        return launch.outcome
    raise launch.error or Cancelled("the pilot was cancelled in Prefect before it began")


def child_of(parent: str, flow: Flow[Any, Any]) -> FlowRun | None:
    """A new flow run below another one, with the tags of this context; None where the server does not make it.

    As Prefect's engine does for a flow within a flow, a task run of the parent stands for the child. The server gives
    it the states of the child.
    """
    with contextlib.suppress(HTTPError, PrefectException), get_client(sync_client=True) as client:
        task = Task(flow.fn, name=flow.name)
        pending: State[Any] = Pending()
        key = uuid.uuid4().hex
        task_run = client.create_task_run(task, uuid.UUID(parent), dynamic_key=key, name=flow.name, state=pending)
        current = TagsContext.get().current_tags
        return client.create_flow_run(flow, parent_task_run_id=task_run.id, tags=current, state=pending)
    return None


class _Launch:
    """The launch of one pilot, and what became of it."""

    def __init__(
        self, call: Call, cluster: Cluster, options: Options, prepared: Prepared, on_run_id: Callable[[str], object]
    ) -> None:
        self._call, self._cluster, self._options, self._prepared = call, cluster, options, prepared
        self._on_run_id = on_run_id
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None

    def as_flow(self) -> Flow[[], Any]:
        """The launch as a flow without parameters."""

        def body() -> Any:
            return self._state_or_summary()

        name = flow_run_name(f"{NAME} of {self._call.label}", self._cluster.label, self._options.nodes)
        return Flow(fn=body, name=NAME, flow_run_name=name, persist_result=False, validate_parameters=False)

    def _state_or_summary(self) -> State[Any] | Any:
        try:
            self.outcome = self._launch()
        except Cancelled as error:
            self.error = error
            return CancelledState(message=error.what)
        except Exception as error:
            self.error = error
            return Failed(message=encodable(f"{type(error).__name__}: {error}"))
        if self.outcome.exception is not None:
            return Failed(message=encodable(f"{type(self.outcome.exception).__name__}: {self.outcome.exception}"))
        return self.outcome.value

    def _launch(self) -> Outcome:
        run = Run(str(flow_run.get_id() or uuid.uuid4()), self._call.label, self._cluster, self._options.gpus_per_node)
        run.note(keep=self._options.keep)
        self._on_run_id(run.record.run_id)
        # The tags are the flow run's: a task that has one asks the server for a slot of that tag's limit.
        with TagsContext(current_tags=set()):
            return pilot(run, self._call, self._cluster, self._options, self._prepared)
