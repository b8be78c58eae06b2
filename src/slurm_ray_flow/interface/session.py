"""A launch from this process: its flow run in Prefect, its display, and its result where Prefect fails."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
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
from slurm_ray_flow.core.scan import target_of
from slurm_ray_flow.core.sweep import TAG
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.interface.cancellation import bound_the_end, server_listens
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.parameters import Arguments
from slurm_ray_flow.interface.progress import terminal_display
from slurm_ray_flow.interface.result_storage import keep_with_run
from slurm_ray_flow.interface.screen import quiet_console
from slurm_ray_flow.interface.settings import options_on
from slurm_ray_flow.remote.shared.pickling import Sources, importable
from slurm_ray_flow.tasks.cancellation import in_background
from slurm_ray_flow.tasks.run import Call, Run, doubtful, release

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

    @property
    def marks(self) -> set[str]: ...

    def called(self, current: Launching, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


def submit(flow: DecoratedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle[Any]:
    """Launch in a thread of this process; return once the cluster has the run.

    From then on this process may end: the run goes on, and any process can attach to it.

    Raises:
        SlurmRayFlowError: the launch failed before that.
    """
    submitted = threading.Event()

    def see_submitted(event: events.LaunchEvent) -> None:
        if isinstance(event, events.Detachable):
            submitted.set()

    current = Launching(see_submitted)
    future: Future[Any] = Future()
    future.add_done_callback(lambda _: submitted.set())
    work = work_of(flow, current, args, kwargs)
    threading.Thread(target=_settle, args=(future, work), name=f"srf-{flow.name}", daemon=True).start()
    submitted.wait()
    bound_the_end()
    if current.run_id is None:
        future.result()
    assert current.run_id is not None, "a launch that was submitted has an id"
    return Handle(current.run_id, future)


def work_of(
    flow: DecoratedFunction, current: Launching, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any]:
    """The function that makes a call in a thread of its own."""
    if flow.isasync:
        return lambda: asyncio.run(flow.called(current, args, kwargs))
    return lambda: flow.called(current, args, kwargs)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        with in_background():
            value = work()
        future.set_result(value)
    except BaseException as error:  # whatever it is, it belongs to whoever asks for the result
        future.set_exception(error)


class Launching:
    """The state of a launch that the caller of the flow and its body share.

    Args:
        subscribers: what gets the launch's events.
        tags: tags of the flow run, besides the one that all have.
        below: the folder that its files come home to, from where they would go otherwise.

    Attributes:
        flow: what is called.
        given: the arguments, as they were given; None where Prefect must wait for some of them first.
    """

    def __init__(self, *subscribers: events.Subscriber, tags: tuple[str, ...] = (), below: str = "") -> None:
        self.subscribers = subscribers
        self.tags = (TAG, *tags)
        self.below = below
        self.flow: DecoratedFunction | None = None
        self.given: Arguments | None = None
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
        if isinstance(error, NoException):
            error = error.own
            context = error.__context__
            try:
                raise error.with_traceback(None)
            finally:
                error.__context__ = context
        if isinstance(error, KeyboardInterrupt):
            error.__context__ = None  # what was being waited for is no part of a Ctrl-C
        if isinstance(error, KeyboardInterrupt | SlurmRayFlowError) or (
            self.outcome and error is self.outcome.exception
        ):
            raise error.with_traceback(None)  # the frames between are Prefect's and ours
        if self.outcome is None or not isinstance(error, Exception):
            if self.outcome is None and (known := server_error(error)):
                raise known from None
            raise error
        events.publish(events.Note(f"Prefect's server failed ({type(error).__name__}); the value is here all the same"))
        return self.outcome.unwrap()


class NoException(Exception):
    """A stand-in, for Prefect, for a KeyboardInterrupt or the like that the function itself has raised.

    It would take the thing itself for somebody's Ctrl-C or cancel, and the run for one that crashed.
    """

    def __init__(self, own: BaseException) -> None:
        super().__init__(encodable(f"{type(own).__name__}: {own}".removesuffix(": ")))
        self.own = own


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
            settings = temporary_settings(_client_settings())
            with _server_of(current), settings, tags(*current.tags), quiet_console(), current.stack:
                yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            if current.run_id:
                events.publish(events.RunEnded(error))
            bound_the_end()
            _launching.reset(token)


@contextlib.contextmanager
def _server_of(current: Launching) -> Iterator[None]:
    """Connect to the server; inside another flow run that is its own, which Prefect may have started for it alone."""
    if FlowRunContext.get() is not None:
        yield
        return
    address = ensure_server(_note)
    current.server = address
    with connected(address):
        yield


@contextlib.contextmanager
def on_the_server() -> Iterator[None]:
    """Connect to the server without a launch."""
    with events.streamed_to(terminal_display()):
        address = ensure_server(_note)
    with connected(address):
        yield


def _note(text: str) -> None:
    events.publish(events.Note(text))


def previewed(flow: DecoratedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Preview:
    """The preview of a call; needs a server only for a saved cluster."""
    from slurm_ray_flow.tasks.preview import preview

    parameters = get_call_parameters(flow.fn, args, kwargs)
    wanted = flow.options.cluster
    with on_the_server() if isinstance(wanted, str) and wanted != "local" else contextlib.nullcontext():
        cluster = find_cluster(wanted)
    target = target_of(flow.function, Arguments(flow.fn, parameters).parameters.values())
    return preview(target, flow.name, cluster, options_on(cluster, flow.options))


@functools.cache
def _client_settings() -> dict[Any, Any]:
    return {
        # Prefect's heartbeat thread holds every sync run back for a second at its end; ours beats in the wait loop.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }


def run_launch(flow: DecoratedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The body of each decorated function's flow, in the caller's process or in a deployment's."""
    from slurm_ray_flow.flows.launch import launch  # what only a launch needs does not hold the decorator back

    run_id = str(flow_run.get_id() or uuid.uuid4())
    keep_with_run(run_id)
    current = launching_of(flow) or Launching()
    cluster = find_cluster(flow.options.cluster)
    remember(cluster)
    call = describe_call(flow, current.given or Arguments(flow.fn, get_call_parameters(flow.fn, args, kwargs)))
    run = Run(run_id, call.label, cluster, flow.options.gpus_per_node)
    here = Path.cwd()
    run.note(
        keep=flow.options.keep,
        home_folder=str(folder_at_home(project_of(call.target.file, here), here) / current.below),
    )
    current.run_id = run_id
    ensure_tags(flow.marks)
    events.publish(events.RunBegan(run_id, call.label, cluster.label, current.page(run_id)))
    try:
        # The tags are the flow run's: a task that has one asks the server for a slot of that tag's limit.
        with TagsContext(current_tags=TagsContext.get().current_tags - set(current.tags)):
            current.outcome = launch(run, call, cluster, options_on(cluster, flow.options))
    except Cancelled as error:
        current.cancelled = error
        return CancelledState(message=error.what)
    finally:
        if not flow.isasync:
            spare_a_dead_server()
    return _ended(current.outcome)


def _ended(outcome: Outcome) -> Any:
    """The value of an outcome; its exception is raised, or given as a state where Prefect could not encode its text."""
    own = outcome.exception
    if own is not None and not isinstance(own, Exception):
        raise NoException(with_note(own, outcome.traceback))
    try:
        return outcome.unwrap()
    except Exception as error:
        text = f"Flow run encountered an exception: {type(error).__name__}: {error}"
        if encodable(text) == text:
            raise
        return Failed(message=encodable(text), data=error)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
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
        spare_a_dead_server()  # here, since a setting of the thread's would not be seen by the engine


def spare_a_dead_server() -> None:
    """Keep Prefect's client from asking a dead server again for a minute after the run, which would delay the value."""
    current = _launching.get()
    if current is not None and not server_listens():
        current.stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))


def ensure_tags(marks: set[str]) -> None:
    """Add the tags by which people and the sweep find a run; a run of a foreign deployment lacks them."""
    context = FlowRunContext.get()
    current_run = context.flow_run if context else None
    if current_run is None or TAG in current_run.tags:
        return
    current_run.tags = sorted({*current_run.tags, *marks})
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # the run itself needs no tag
        client.update_flow_run(current_run.id, tags=current_run.tags)


def launching_of(flow: DecoratedFunction) -> Launching | None:
    """The launch from this process that a flow is run for; None for a run of a deployment."""
    current = _launching.get()
    return current if current and current.flow and current.flow.fn is flow.fn else None


def describe_call(flow: DecoratedFunction, given: Arguments) -> Call:
    """Put the function and its arguments into the store.

    Raises:
        PayloadError: one of them can't be pickled.
    """
    arguments = given.stored()
    target = target_of(flow.function, given.parameters.values())
    plain = flow.plain
    reference = (
        ["reference", plain.__module__, plain.__qualname__]
        if flow.travels_by_name
        else ["value", flow.function, Sources()]
    )
    function = store.put(reference, f"the function {flow.name!r}")
    content = _content_of(flow, given.parameters) if flow.options.cache is not None else ("", "")
    return Call(function.digest, arguments, target, flow.name, *content)


def _content_of(flow: DecoratedFunction, values: dict[str, Any]) -> tuple[str, str]:
    """The digest of a function and its arguments; or "", and the reason that there is none."""
    plain = flow.plain
    function = (plain.__module__, plain.__qualname__) if flow.travels_by_name else flow.function
    try:
        return digest_of((function, values)), ""
    except Undigestible as error:
        parts = {"the function": function, **{f"the argument {name!r}": value for name, value in values.items()}}
        for what, value in parts.items():
            try:
                digest_of(value)
            except Undigestible as of_it:
                return "", f"{what}: {of_it}"
        return "", str(error)


def travels_by_name(function: Any) -> bool:
    """Whether another process finds this function by its module and name."""
    name, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    return isinstance(name, str) and "<" not in qualified and importable(name)


def label(cluster: Any) -> str:
    """The name of a cluster, which may not be loaded yet."""
    return cluster if isinstance(cluster, str) else str(cluster.label)


def is_own(record: RunRecord) -> bool:
    """Whether this process has launched the run."""
    this = processes.this_process()
    return (record.pid, record.started, record.boot_id) == (this.pid, this.started, this.boot_id)


def release_hook(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - Prefect wants these names
    """End the remote part of a flow run that was cancelled, or whose process crashed with time to say so.

    Prefect's runner calls it, too, for a process that was killed.
    """
    try:
        record = store.find_record(str(flow_run.id))
    except UnknownRunError:
        return
    if record.run_id in doubtful:  # this process has tried
        return
    if state.is_crashed() and not is_own(record):  # its process was killed: the run goes on, and is picked up later
        return
    if not release(record, cluster_of(record)):
        logging.getLogger("prefect.flow_runs").error("It is not sure that run %s has ended.", record.run_id)
