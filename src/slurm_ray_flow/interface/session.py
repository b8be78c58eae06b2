"""A launch from this process: its flow run in Prefect, its display, and its value when Prefect's engine fails."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled as CancelledState
from prefect.states import Failed
from prefect.utilities.callables import get_call_parameters

from slurm_ray_flow.blocks import processes, store
from slurm_ray_flow.blocks.clusters import cluster_of, find_cluster, remember
from slurm_ray_flow.blocks.server import ServerAddress, connected, ensure_server
from slurm_ray_flow.blocks.server.client import server_error
from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.config import variable_warnings
from slurm_ray_flow.core.digest import Undigestible, digest_of
from slurm_ray_flow.core.errors import Cancelled, SlurmRayFlowError, UnknownRunError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.project import NEEDED, folder_at_home, project_of, shadows
from slurm_ray_flow.core.run import Outcome, RunRecord, with_note
from slurm_ray_flow.core.scan import FunctionSource, target_of
from slurm_ray_flow.core.sweep import TAG
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.interface.cancellation import bound_process_end, server_listens
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.parameters import Arguments
from slurm_ray_flow.interface.progress import terminal_display
from slurm_ray_flow.interface.result_storage import RunValue, store_result_with_run
from slurm_ray_flow.interface.screen import quiet_console
from slurm_ray_flow.interface.settings import options_on
from slurm_ray_flow.remote.shared.pickling import Sources, importable
from slurm_ray_flow.tasks.cancellation import in_background, is_in_background
from slurm_ray_flow.tasks.run import Call, Run, release, unverified_ends

if TYPE_CHECKING:
    from slurm_ray_flow.tasks.preview import Preview


class DecoratedFunction(Protocol):
    """What a launch needs of a `LaunchFlow`, which is made of this module's functions."""

    fn: Any
    function: Any
    plain: Any
    options: Options
    name: str
    isasync: bool
    travels_by_name: bool
    result_serializer: Any
    on_completion_hooks: list[Any]

    @property
    def run_tags(self) -> set[str]: ...

    def call(self, current: Launching, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


def submit(flow: DecoratedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
    """Launch in a thread of this process; return once the cluster has the run.

    From then on this process may end: the run goes on, and any process can attach to it.

    Raises:
        SlurmRayFlowError: the launch failed before the cluster had the run.
    """
    submitted = threading.Event()

    def see_submitted(event: events.LaunchEvent) -> None:
        if isinstance(event, events.Detachable) or event == events.StepStarted(events.AWAIT_VALUE):
            submitted.set()

    current = Launching(see_submitted)
    future: Future[Any] = Future()
    future.add_done_callback(lambda _: submitted.set())
    work = blocking_call(flow, current, args, kwargs)
    threading.Thread(target=_settle, args=(future, work), name=f"srf-{flow.name}", daemon=True).start()
    submitted.wait()
    bound_process_end()
    if current.run_id is None:
        future.result()
    assert current.run_id is not None, "a launch that was submitted has an id"
    return Handle(current.run_id, future)


def blocking_call(
    flow: DecoratedFunction, current: Launching, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any]:
    """The call as a function without parameters, which blocks until the call has ended."""
    if flow.isasync:
        return lambda: asyncio.run(flow.call(current, args, kwargs))
    return lambda: flow.call(current, args, kwargs)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        with in_background():
            value = work()
        future.set_result(value)
    except BaseException as error:  # any exception belongs to the caller of `result`
        future.set_exception(error)


@dataclasses.dataclass(frozen=True)
class KeptFunction:
    """A function as another process has kept it, whose source this process does not see.

    Attributes:
        digest: its payload in the store at home.
        target: the source that the scan starts from.
        prepared: `Call.prepared`.
    """

    digest: str
    target: FunctionSource
    prepared: str = ""


class Launching:
    """The state of a launch that the caller of the flow and its body share.

    Args:
        subscribers: receive the launch's events.
        tags: tags of the flow run, besides the tag of all flow runs.
        subfolder: where the run's files go at home, relative to the folder that they would go to otherwise.

    Attributes:
        flow: the decorated function.
        arguments: the caller's arguments; None where Prefect must wait for some of them first.
        kept: the function, where another process has kept it; None for one of this process.
    """

    def __init__(self, *subscribers: events.Subscriber, tags: tuple[str, ...] = (), subfolder: str = "") -> None:
        self.subscribers = subscribers
        self.tags = (TAG, *tags)
        self.subfolder = subfolder
        self.flow: DecoratedFunction | None = None
        self.arguments: Arguments | None = None
        self.kept: KeptFunction | None = None
        self.run_id: str | None = None
        self.outcome: Outcome | None = None
        self.cancelled: Cancelled | None = None
        self.stack = contextlib.ExitStack()
        self.server: ServerAddress | None = None

    def page(self, run_id: str) -> str:
        """The run's page in the UI."""
        return self.server.page(run_id) if self.server else ""

    def rescue(self, error: BaseException) -> Any:
        """The result for the caller when Prefect's engine raised `error`.

        The launch's own result wins: a server that died under it must not cost the value.
        """
        __tracebackhide__ = True
        if self.cancelled is not None and isinstance(error, CancelledRun):
            raise self.cancelled from None
        if isinstance(error, InterruptionStandIn):
            error = error.original
            context = error.__context__
            try:
                raise error.with_traceback(None)
            finally:
                error.__context__ = context
        if isinstance(error, KeyboardInterrupt):
            error.__context__ = None  # the interrupted wait is no part of a Ctrl-C
        if isinstance(error, KeyboardInterrupt | SlurmRayFlowError) or (
            self.outcome and error is self.outcome.exception
        ):
            raise error.with_traceback(None)  # the frames between are Prefect's and ours
        if self.outcome is None or not isinstance(error, Exception):
            if self.outcome is None and (explained := server_error(error)):
                raise explained from None
            raise error
        events.publish(events.Note(f"Prefect's server failed ({type(error).__name__}); the value is here all the same"))
        return self.outcome.unwrap()


class InterruptionStandIn(Exception):
    """A stand-in for a KeyboardInterrupt or SystemExit that the function itself has raised.

    Prefect would take the original exception for a Ctrl-C or a cancel of the launch, and the run for a crashed one.
    """

    def __init__(self, original: BaseException) -> None:
        super().__init__(encodable(f"{type(original).__name__}: {original}".removesuffix(": ")))
        self.original = original


_launching: contextvars.ContextVar[Launching | None] = contextvars.ContextVar("slurm_ray_flow_launching", default=None)


@contextlib.contextmanager
def launching(current: Launching) -> Iterator[None]:
    """The settings, the server and the event stream around a flow run from this process."""
    token = _launching.set(current)
    error: BaseException | None = None
    with events.streamed_to(*current.subscribers):
        try:
            for text in (*variable_warnings(os.environ), *shadows(NEEDED)):
                events.publish(events.Warned(text))
            # Prefect's heartbeat thread delays the end of each sync run by a second; `Heartbeat` does without a thread.
            settings = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
            with _server_of(current), settings, tags(*current.tags), quiet_console(), current.stack:
                yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            if current.run_id:
                events.publish(events.RunEnded(error))
            bound_process_end()
            _launching.reset(token)


@contextlib.contextmanager
def _server_of(current: Launching) -> Iterator[None]:
    """Connect to the server; inside another flow run keep that flow run's server."""
    if FlowRunContext.get() is not None:
        yield
        return
    address = ensure_server(_note)
    current.server = address
    with connected(address):
        yield


@contextlib.contextmanager
def on_the_server() -> Iterator[None]:
    """Connect this process to the Prefect server that launches use, and start it if it does not run.

    With `PREFECT_API_URL`, or an API in Prefect's profile, it is that server.
    """
    with events.streamed_to(terminal_display()):
        address = ensure_server(_note)
    with connected(address):
        yield


def _note(text: str) -> None:
    events.publish(events.Note(text))


def preview_of(flow: DecoratedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Preview:
    """The preview of a call; needs a server only for a saved cluster."""
    from slurm_ray_flow.tasks.preview import preview

    parameters = get_call_parameters(flow.fn, args, kwargs)
    cluster_option = flow.options.cluster
    with on_the_server() if isinstance(cluster_option, str) and cluster_option != "local" else contextlib.nullcontext():
        cluster = find_cluster(cluster_option)
    target = target_of(flow.function, Arguments(flow.fn, parameters).parameters.values())
    return preview(target, flow.name, cluster, options_on(cluster, flow.options))


def run_launch(flow: DecoratedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The body of each decorated function's flow, in the caller's process or in a deployment's."""
    from slurm_ray_flow.flows.launch import launch  # only a launch needs these: decorating stays quick
    from slurm_ray_flow.interface.producers import Places, complete_call

    run_id = str(flow_run.get_id() or uuid.uuid4())
    store_result_with_run(run_id)
    current = launching_of(flow) or Launching()
    cluster = find_cluster(flow.options.cluster)
    remember(cluster)
    arguments = current.arguments or Arguments(flow.fn, get_call_parameters(flow.fn, args, kwargs))
    call = None if Places(arguments.parameters).sources else describe_call(flow, arguments, kept=current.kept)
    run = Run(run_id, flow.name, cluster, flow.options.gpus_per_node)
    folder = Path.cwd()
    source = call.target if call else current.kept.target if current.kept else target_of(flow.function, ())
    run.note(
        keep=flow.options.keep,
        home_folder=str(folder_at_home(project_of(source.file, folder), folder) / current.subfolder),
    )
    current.run_id = run_id
    # Another serializer or a hook of the user's would get what stands in the place of the value.
    own_serializer = isinstance(flow.result_serializer, RunValue) and not flow.on_completion_hooks
    run.may_leave_value = is_in_background() and own_serializer

    def described() -> Call:
        return call or complete_call(arguments, run, cluster, partial(describe_call, flow, kept=current.kept))

    ensure_tags(flow.run_tags)
    events.publish(events.RunBegan(run_id, flow.name, cluster.label, current.page(run_id)))
    try:
        # The tags are the flow run's: a task that has one asks the server for a slot of that tag's limit.
        with TagsContext(current_tags=TagsContext.get().current_tags - set(current.tags)):
            current.outcome = launch(run, described, cluster, options_on(cluster, flow.options))
    except Cancelled as error:
        current.cancelled = error
        return CancelledState(message=error.what)
    finally:
        if not flow.isasync:
            stop_asking_dead_server()
    return _value_or_failed_state(current.outcome)


def _value_or_failed_state(outcome: Outcome) -> Any:
    """Give an outcome's value or raise its exception; give a state where Prefect could not encode the exception."""
    original = outcome.exception
    if original is not None and not isinstance(original, Exception):
        raise InterruptionStandIn(with_note(original, outcome.traceback))
    try:
        return outcome.unwrap()
    except Exception as error:
        text = f"Flow run encountered an exception: {type(error).__name__}: {error}"
        if encodable(text) == text:
            raise
        return Failed(message=encodable(text), data=error)


async def run_in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """As `asyncio.to_thread`, in a thread that the end of the process does not wait for."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function, *args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    finally:
        stop_asking_dead_server()  # not in the thread, whose settings the engine does not see


def stop_asking_dead_server() -> None:
    """Keep Prefect's client from asking a dead server again for a minute after the run, which would delay the value."""
    current = _launching.get()
    if current is not None and not server_listens():
        current.stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))


def ensure_tags(run_tags: set[str]) -> None:
    """Add the tags by which people and the sweep find a run; a run of a foreign deployment lacks them."""
    context = FlowRunContext.get()
    current_run = context.flow_run if context else None
    if current_run is None or TAG in current_run.tags:
        return
    current_run.tags = sorted({*current_run.tags, *run_tags})
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # the run itself needs no tag
        client.update_flow_run(current_run.id, tags=current_run.tags)


def launching_of(flow: DecoratedFunction) -> Launching | None:
    """The launch from this process that a flow is run for; None for a run of a deployment."""
    current = _launching.get()
    return current if current and current.flow and current.flow.fn is flow.fn else None


def describe_call(
    flow: DecoratedFunction,
    arguments: Arguments,
    at_home: Arguments | None = None,
    kept: KeptFunction | None = None,
) -> Call:
    """Put the function and its arguments into the store.

    Args:
        flow: the decorated function.
        arguments: its arguments as they are sent.
        at_home: its arguments as far as home has them, where what is sent refers to values on the cluster.
        kept: the function as another process has kept it.

    Raises:
        PayloadError: the function or an argument can't be pickled.
    """
    arguments_digest = arguments.stored()
    if kept is None:
        target = target_of(flow.function, (at_home or arguments).parameters.values())
        kept = KeptFunction(stored_function(flow), target)
    content = _content_of(flow, arguments.parameters) if flow.options.cache is not None else ("", "")
    return Call(kept.digest, arguments_digest, kept.target, flow.name, *content, prepared=kept.prepared)


def stored_function(flow: DecoratedFunction) -> str:
    """Put the function into the store; gives its digest.

    Raises:
        PayloadError: it can't be pickled.
    """
    plain = flow.plain
    reference = (
        ["reference", plain.__module__, plain.__qualname__]
        if flow.travels_by_name
        else ["value", flow.function, Sources()]
    )
    return store.put(reference, f"the function {flow.name!r}").digest


def _content_of(flow: DecoratedFunction, values: dict[str, Any]) -> tuple[str, str]:
    """The digest of a function and its arguments; or "", and the reason that there is none."""
    plain = flow.plain
    function = (plain.__module__, plain.__qualname__) if flow.travels_by_name else flow.function
    try:
        return digest_of((function, values)), ""
    except Undigestible as error:
        parts = {"the function": function, **{f"the argument {name!r}": value for name, value in values.items()}}
        for part, value in parts.items():
            try:
                digest_of(value)
            except Undigestible as reason:
                return "", f"{part}: {reason}"
        return "", str(error)


def travels_by_name(function: Any) -> bool:
    """Whether another process finds this function by its module and name."""
    name, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    return isinstance(name, str) and "<" not in qualified and importable(name)


def label(cluster: Any) -> str:
    """The name of a cluster that is given by its name or as a block."""
    return cluster if isinstance(cluster, str) else str(cluster.label)


def is_ours(record: RunRecord) -> bool:
    """Whether this process has launched the run."""
    process = processes.this_process()
    return (record.pid, record.started, record.boot_id) == (process.pid, process.started, process.boot_id)


def release_hook(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect wants these names
    """End the remote part of a flow run that was cancelled, or whose process crashed with time to say so.

    Prefect's runner calls it, too, for a process that was killed.
    """
    try:
        record = store.find_record(str(flow_run.id))
    except UnknownRunError:
        return
    if record.run_id in unverified_ends:  # this process has tried to end it
        return
    if state.is_crashed() and not is_ours(record):  # its process was killed: the run goes on, and is picked up later
        return
    if not release(record, cluster_of(record)):
        logging.getLogger("prefect.flow_runs").error("It is not sure that run %s has ended.", record.run_id)
