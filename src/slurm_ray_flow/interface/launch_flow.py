"""A decorated function: a Prefect flow whose body is the launch."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from prefect import Flow
from prefect.flow_engine import run_flow
from prefect.utilities.callables import get_call_parameters
from prefect.utilities.visualization import get_task_viz_tracker

from slurm_ray_flow.core.artifacts import flow_run_name, tags_of
from slurm_ray_flow.core.options import Options, checked, is_option
from slurm_ray_flow.core.run import shorten
from slurm_ray_flow.interface import session
from slurm_ray_flow.interface.body import PREFECT_PARAMETERS, bind, body_of, entrypoint_of, name_of, version_of
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.map import Handles, start_map
from slurm_ray_flow.interface.parameters import Arguments, OpaqueValue, cast_all, from_api, holds_future, to_api, unwrap
from slurm_ray_flow.interface.progress import terminal_display
from slurm_ray_flow.interface.result_storage import RunValue
from slurm_ray_flow.interface.settings import Types, options_of, shown_in_forms, typed_signature, types_of, underlying
from slurm_ray_flow.remote.shared import pickling
from slurm_ray_flow.remote.shared.pickling import itself, resolve_function
from slurm_ray_flow.tasks.page import kind_of

if TYPE_CHECKING:
    from slurm_ray_flow.interface.campaign import Campaign
    from slurm_ray_flow.interface.campaign_new import NewItems

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")


class LaunchFlow(Flow[P, R], Generic[P, R]):
    """A decorated function.

    Calling it runs the function on its cluster and gives the value. All else of `prefect.Flow` works too.
    """

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        self.function = function
        self.plain = plain = underlying(function)
        self.options = options = options_of(plain, options)
        self.travels_by_name = plain is function and session.travels_by_name(plain)
        launch = partial(session.run_launch, self)
        body: Any = body_of(function, launch, partial(session.run_in_thread, launch))
        signature = body.__signature__
        body.__signature__ = shown_in_forms(signature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a default without JSON is no fault, nor a name that pydantic has, too
            super().__init__(
                fn=body,
                name=options.name or name_of(function),
                version=version_of(plain),
                description=inspect.getdoc(plain),
                flow_run_name=flow_run_name(
                    options.name or name_of(function), session.label(options.cluster), options.nodes
                ),
                validate_parameters=False,  # by Prefect's own model, which takes neither each name nor each annotation
                persist_result=True,
                result_serializer=RunValue(),
                on_cancellation=[session.release_hook],
                on_crashed=[session.release_hook],
            )
        self.should_validate_parameters = True
        body.__signature__ = signature
        self._entrypoint = entrypoint_of(plain, self._entrypoint)

    @cached_property
    def types(self) -> Types:
        """The types of the function's parameters, read late: annotations may name classes that are defined after it."""
        return types_of(typed_signature(self.function))

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override] # Prefect's own options are few
        """Run the function on its cluster.

        Returns:
            The function's value; for an `async def`, a coroutine of it.

        Raises:
            SlurmRayFlowError: the function did not get to an end.
            BaseException: the function's own exception, with its traceback on the cluster as a note.
        """
        __tracebackhide__ = True
        try:
            return cast(R, self.call(session.Launching(terminal_display()), args, kwargs))
        except BaseException as error:
            shorten(error)
            raise error

    @property
    def run_tags(self) -> set[str]:
        """The tags of its flow runs and deployments."""
        cluster = self.options.cluster
        return tags_of(self.name, session.label(cluster), kind_of(cluster))

    def call(self, current: session.Launching, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function as the launch that `current` describes.

        Raises:
            TypeError: the function does not take such arguments.
        """
        __tracebackhide__ = True
        if get_task_viz_tracker():  # `visualize` draws the flow that calls this one
            return super().__call__(*args, **kwargs)
        own = {name: kwargs[name] for name in kwargs if name not in PREFECT_PARAMETERS}
        bind(self.fn, args, own)
        parameters = get_call_parameters(self.fn, args, own)
        wrapped = {name: OpaqueValue(unwrap(value)) for name, value in parameters.items() if not holds_future(value)}
        start = partial(
            run_flow,
            self,
            parameters={**parameters, **wrapped},
            wait_for=kwargs.get("wait_for"),
            return_type="state" if kwargs.get("return_state") else "result",
        )
        current.flow = self
        if len(wrapped) == len(parameters):
            original = (args, own) if hasattr(self.function, "__wrapped__") else None  # a wrapper may look at them
            current.arguments = Arguments(self.fn, parameters, original)
        current.tags = (*current.tags, *sorted(self.run_tags - set(current.tags)))
        return self._run_async(current, start) if self.isasync else self._run_sync(current, start)

    def _run_sync(self, current: session.Launching, start: Callable[[], Any]) -> Any:
        __tracebackhide__ = True
        with session.launching(current):
            try:
                return start()
            except BaseException as error:
                return current.rescue(error)

    async def _run_async(self, current: session.Launching, start: Callable[[], Any]) -> Any:
        __tracebackhide__ = True
        with session.launching(current):
            try:
                return await start()
            except BaseException as error:
                return current.rescue(error)

    @overload
    def submit(self: LaunchFlow[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...

    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[Any]:
        """Start the function on its cluster, and give a handle as soon as the cluster has the run.

        Raises:
            SlurmRayFlowError: the run could not be started.
        """
        __tracebackhide__ = True
        try:
            return session.submit(self, args, kwargs)
        except BaseException as error:
            shorten(error)
            raise error

    @overload
    def map(
        self: LaunchFlow[P, Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        max_parallel: int | None = 8,
        **same: Any,
    ) -> Handles[T]: ...

    @overload
    def map(self, /, *iterables: Iterable[Any], max_parallel: int | None = 8, **same: Any) -> Handles[R]: ...

    def map(self, /, *iterables: Iterable[Any], max_parallel: int | None = 8, **same: Any) -> Handles[Any]:
        """Call the function for each value, each call a run of its own; gives their handles at once, in order.

        With several iterables it takes a value of each, until the shortest ends, as the builtin `map`
        does. A call that fails costs the others nothing.

        Args:
            iterables: the values of the first parameter, of the second, and so on.
            max_parallel: how many calls may be under way at a time; None begins all at once.
            same: arguments by name that all calls have.

        Raises:
            OptionError: `max_parallel` is no number of calls.
            TypeError: the function does not take such arguments.
        """
        return start_map(self, iterables, same, max_parallel)

    def campaign(
        self,
        values: Iterable[Any] | Path,
        /,
        *,
        clusters: Sequence[Any] | None = None,
        name: str = "",
        weight: float = 1.0,
        retries: int = 0,
        max_failures: int | None = None,
        max_pilots: int = 8,
        spread: bool = False,
        same: Mapping[str, Any] | None = None,
        key: str | Callable[[Any], Any] | None = None,
        priority: int = 0,
        test: bool = False,
        max_queued: int | None = None,
    ) -> Campaign[R]:
        """Run the function for each value in pilots: runs that take thousands of items each, on several clusters.

        The campaign belongs to this home's engine: it goes on when this process ends, and `Campaign.attach` finds it.
        An item may run twice where its pilot is lost, and has exactly one outcome.

        Args:
            values: the values of the first parameter: any iterable, also a generator of a million. The rows of a pandas
                DataFrame, or of a file `Path("params.csv")` or `Path("params.jsonl")`, are arguments by name; those of
                a file are cast by the annotations.
            clusters: names of saved clusters, or "local"; the function's own cluster by default.
            name: for people; the function's name by default.
            weight: the share of this campaign among those of its user.
            retries: how often an item whose function raised an exception is tried again.
            max_failures: the campaign is cancelled when more items than that have failed; None for no such limit.
            max_pilots: the most pilots on each cluster.
            spread: take each value as all arguments: a tuple by place, a mapping by name.
            same: arguments by name that all items have.
            key: names what no two items may have in common: an argument, or a function of a value.
            priority: the campaign goes before those of the same user that have a lower one.
            test: the campaign goes before all others of the same user, in one pilot on each cluster. It has at most
                100 items.
            max_queued: the most of its pilots that wait in a cluster's queue at a time; None for 16 of all campaigns of
                the user.

        Raises:
            GridError: a test has more items than that.
            OptionError: an option or a value can't be meant, two values have the same key, there are no values, or a
                cluster is unknown.
            PayloadError: a value can't be pickled; its place is named.
            TypeError: the function does not take such arguments.
        """
        __tracebackhide__ = True
        from slurm_ray_flow.interface.campaign import Campaign
        from slurm_ray_flow.interface.campaign_start import CampaignOptions, start_campaign

        wanted = CampaignOptions(
            name, weight, retries, max_failures, max_pilots, spread, key, priority, test, max_queued
        )
        chosen = [self.options.cluster] if clusters is None else clusters
        campaign_id, client = start_campaign(self, values, chosen, wanted, dict(same or {}))
        return Campaign(campaign_id, client, self)

    def campaign_of_new(self, values: Sequence[Any], /, *, key: str = "", **chosen: Any) -> NewItems[R]:
        """As `campaign`, without the values whose key has a value in an earlier campaign of this function.

        Gives the values of all of them: earlier ones are read from the earlier campaign, as long as it is not purged.

        Args:
            values: the values of the first parameter.
            key: the name of an argument, or of an entry of values that are mappings; "" runs all of them.
            chosen: `clusters`, `name`, `weight`, `retries`, `max_failures`, `max_pilots`, `max_queued`.

        Raises:
            OptionError: a value has no such key, or as for `campaign`.
            PayloadError: a value can't be pickled; its place is named.
        """
        from slurm_ray_flow.interface.campaign_new import NewItems, key_of, places_of

        places = places_of(self, values, key) if key else [None] * len(values)
        new = [value for value, place in zip(values, places, strict=True) if place is None]
        if key:
            chosen["key"] = lambda value: key_of(self.fn, (value,), {}, key)
        return NewItems(places, self.campaign(new, **chosen) if new else None)

    def script(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Preview a call: the batch script, and below it the resources, files and packages. Nothing is submitted.

        Raises:
            TypeError: the function does not take such arguments.
            SlurmRayFlowError: the call would fail before it got to the cluster.
        """
        return str(session.preview_of(self, args, kwargs))

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The plain function, called here."""
        return self.function(*args, **kwargs)

    def with_options(self, **changes: Any) -> LaunchFlow[P, R]:
        """The same function with some options changed; takes the decorator's options and those of `Flow`.

        Raises:
            OptionError: an option is unknown or has a wrong value.
        """
        own_options = {name: value for name, value in changes.items() if is_option(name)}
        prefect_options = {name: value for name, value in changes.items() if name not in own_options}
        if unknown := prefect_options.keys() - inspect.signature(Flow.with_options).parameters.keys():
            checked(dict.fromkeys(unknown))  # raises, with the nearest name
        changed: LaunchFlow[P, R] = type(self)(self.function, self.options.stating(**own_options))
        without_function = copy(self)
        without_function.fn = cast(Any, itself)  # Prefect would look at the parameters again
        changed_by_prefect = Flow.with_options(without_function, **prefect_options)
        for name in _PREFECT_STATE:
            setattr(changed, name, getattr(changed_by_prefect, name))
        for name in _PREFECT_NAMES & prefect_options.keys():
            setattr(changed, name, getattr(changed_by_prefect, name))
        return changed

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters for Prefect's API: small plain data as JSON, all else as references into the store at home."""
        current = session.launching_of(self)
        available = {name: value for name, value in parameters.items() if not holds_future(value)}
        arguments = (current and current.arguments) or Arguments(self.fn, available)
        return to_api(self.fn, self.types, parameters, arguments.stored)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a call in this process as they are; those from Prefect's API resolved and cast."""
        if session.launching_of(self) is None:
            parameters = cast_all(self.fn, self.types, from_api(parameters))
        return {name: unwrap(value) for name, value in parameters.items()}

    def typed(self, /, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments that people wrote as text or JSON, cast by the annotations.

        Raises:
            ParameterTypeError: an argument does not have the type of its annotation.
        """
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        bound.arguments.update(cast_all(self.fn, self.types, from_api(bound.arguments)))
        return tuple(map(unwrap, bound.args)), {name: unwrap(bound.kwargs[name]) for name in bound.kwargs}

    def serve(self, *args: Any, **kwargs: Any) -> None:
        """As `Flow.serve`, on the server that launches use."""
        from slurm_ray_flow.blocks.server.runner import temporary_files_of_our_own

        with session.on_the_server(), temporary_files_of_our_own():
            super().serve(*args, **self._with_deployment_defaults(kwargs))

    def deploy(self, *args: Any, **kwargs: Any) -> Any:
        """As `Flow.deploy`, on the server that launches use."""
        with session.on_the_server():
            return super().deploy(*args, **self._with_deployment_defaults(kwargs))

    def to_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """As `Flow.to_deployment`."""
        return super().to_deployment(*args, **self._with_deployment_defaults(kwargs))

    def _with_deployment_defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**DEPLOYMENT_DEFAULTS, **options, "tags": sorted({*self.run_tags, *(options.get("tags") or ())})}

    @overload
    def __get__(self, instance: None, owner: Any) -> LaunchFlow[P, R]: ...

    @overload
    def __get__(self: LaunchFlow[Concatenate[Any, Q], R], instance: object, owner: Any) -> LaunchFlow[Q, R]: ...

    def __get__(self, instance: Any, owner: Any) -> LaunchFlow[..., R]:
        if instance is None:
            return self
        return LaunchFlow(MethodType(self.function, instance), self.options)

    def __copy__(self) -> LaunchFlow[P, R]:
        copied: LaunchFlow[P, R] = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name where the name leads here, else by value: Prefect's runner sends flows to processes."""
        name = (self.plain.__module__, self.plain.__qualname__)
        if _find_by_name(*name) is self:
            return _unpickled, (*name, b"" if self.travels_by_name else self.pickled_by_value())
        return _unpickled, ("", "", self.pickled_by_value())

    def pickled_by_value(self) -> bytes:
        """A pickle that needs no module of this process, for `flow_of_pickle`."""
        state = {name: getattr(self, name) for name in (*_PREFECT_STATE, *_PREFECT_NAMES)}
        buffer = io.BytesIO()
        annotations = {name: parameter.annotation for name, parameter in inspect.signature(self.fn).parameters.items()}
        pickling.dump((self.function, self.options, annotations, state), buffer, lambda _: True)
        return buffer.getvalue()

    def reduce_for_run(self) -> tuple[Any, ...]:
        """The form for a run, inside which a decorated function is the plain one."""
        if self.travels_by_name:
            return resolve_function, (self.plain.__module__, self.plain.__qualname__)
        return itself, (self.function,)


def _find_by_name(module: str, qualified_name: str) -> Any:
    """The object of this name in this process, or None."""
    try:
        return resolve_function(module, qualified_name)
    except (ImportError, AttributeError, ValueError):
        return None


def _unpickled(module: str, qualified_name: str, by_value: bytes) -> LaunchFlow[Any, Any]:
    """Unpickle a decorated function: the one of this name in this process, else a new one from the pickled value."""
    named = _find_by_name(module, qualified_name)
    if isinstance(named, LaunchFlow) or not by_value:
        return cast("LaunchFlow[Any, Any]", named)
    return flow_of_pickle(by_value)


def flow_of_pickle(by_value: bytes) -> LaunchFlow[Any, Any]:
    """A decorated function from what `LaunchFlow.pickled_by_value` gave, in whichever process."""
    function, options, annotations, state = pickling.load(io.BytesIO(by_value), [])
    # Names in textual annotations did not travel, but the objects that they mean did.
    known = {name: kind for name, kind in annotations.items() if kind is not inspect.Parameter.empty}
    underlying(function).__annotations__ = known
    flow: LaunchFlow[Any, Any] = LaunchFlow(function, options)
    flow.__dict__.update(state)
    flow.options = options  # as they were where it came from
    return flow


_again = _unpickled
"""Its name in earlier pickles."""


DEPLOYMENT_DEFAULTS: dict[str, Any] = {"enforce_parameter_schema": False}
"""Options of each deployment: the server would refuse references to the store, and the flow checks types itself."""

_PREFECT_STATE = (
    "task_runner",
    "retry_delay_seconds",
    "timeout_seconds",
    "should_validate_parameters",
    "persist_result",
    "result_storage",
    "result_serializer",
    "cache_result_in_memory",
    "log_prints",
    "on_completion_hooks",
    "on_failure_hooks",
    "on_cancellation_hooks",
    "on_crashed_hooks",
    "on_running_hooks",
    "_storage",
)
"""The attributes that `Flow.with_options` copies, besides those from this package's own options."""
_PREFECT_NAMES = {"flow_run_name", "version", "description"}
