"""The start of a campaign, and items that are added to it: values are stored, clusters prepared, the engine asked."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import inspect
import io
import itertools
import math
import pickle
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import find_cluster, saved_name
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.errors import GridError, OptionError, PayloadError, UnknownCampaignError
from slurm_ray_flow.core.grid import model
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.flows.pilot import prepare_pilots
from slurm_ray_flow.grid.arguments import ArgumentWriter
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.grid.launching import launch_as_json
from slurm_ray_flow.interface.campaign_values import TypedFunction, Value, checked, read_values, with_distinct_keys
from slurm_ray_flow.interface.parameters import Arguments
from slurm_ray_flow.interface.producers import values_at_home
from slurm_ray_flow.interface.progress import terminal_display
from slurm_ray_flow.interface.screen import quiet_console
from slurm_ray_flow.interface.session import DecoratedFunction, describe_call
from slurm_ray_flow.interface.settings import options_on, typed_signature, types_of
from slurm_ray_flow.remote.shared import pickling
from slurm_ray_flow.remote.shared.pickling import resolve_function

IDLE_SECONDS = 120.0
"""Seconds after which a pilot without items ends, where `keep_warm` names none."""
NOTE_SECONDS = 5.0
"""Seconds between two lines about values that are being stored."""
MOST_ABOUT = 2000
"""So many letters of a command are noted with its campaign."""
PARAMETERS, SPREAD, SAME = "parameters", "spread", "same"
"""The keys of what is noted with a campaign about its function's arguments (`model.Campaign.options`)."""


class CampaignFunction(DecoratedFunction, Protocol):
    """What a campaign needs of a `LaunchFlow`."""

    @property
    def types(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class CampaignOptions:
    """What a caller may choose for a campaign; `about` is what it runs, for people, where that is no function."""

    name: str = ""
    weight: float = 1.0
    retries: int = 0
    max_failures: int | None = None
    max_pilots: int = 8
    spread: bool = False
    key: str | Callable[[Any], Any] | None = None
    priority: int = 0
    test: bool = False
    max_queued: int | None = None
    is_open: bool = False
    about: str = ""

    def check(self) -> None:
        """Check the values.

        Raises:
            OptionError: one can't be meant.
        """
        for name, least in (("retries", 0), ("max_pilots", 1), ("max_failures", 0), ("max_queued", 1)):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not is_count and not (name in {"max_failures", "max_queued"} and value is None):
                raise OptionError(f"{name}={value!r} must be a whole number of {least} or more")
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise OptionError(f"priority={self.priority!r} must be a whole number; the highest goes first")
        if not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise OptionError(f"weight={self.weight!r} must be a number above 0")
        if self.key is not None and not isinstance(self.key, str) and not callable(self.key):
            raise OptionError(f"key={self.key!r} must be a function of a value, or the name of an argument")


@dataclasses.dataclass(frozen=True)
class OnCluster:
    """What is chosen for one cluster of a campaign.

    Attributes:
        options: options of the decorator, instead of the function's.
        workers: how many items a pilot runs at a time; None as its CPUs and GPUs are.
        max_pilots: the most pilots there; None as for the other clusters.
        scripts: the `prologue` and the `epilogue` of a pilot, as `script_of` makes them.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int | None = None
    max_pilots: int | None = None
    scripts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def script_of(lines: str, seconds: float, folder: str = "") -> dict[str, Any]:
    """A script around the items of a pilot, as `remote/driver/pilot.py` `execute` runs it: it ends at a failing line.

    Args:
        lines: lines for a shell.
        seconds: what it may take.
        folder: where it runs, as a word of the shell; "" for the run's own folder.
    """
    start = f"cd {folder} || exit\n" if folder else ""
    return {"command": f"{start}set -e\n{lines}", "seconds": seconds}


def start_campaign(
    flow: CampaignFunction,
    values: Any,
    clusters: Sequence[Any],
    wanted: CampaignOptions,
    same: dict[str, Any],
    *,
    each: Mapping[str, OnCluster] | None = None,
    others: OnCluster = OnCluster(),
    campaign_id: str = "",
    reuse: Callable[[model.Campaign], str] = lambda _: "",
) -> tuple[str, GridClient]:
    """Store the arguments, prepare the clusters, and begin the campaign; gives its id, and the client that asked.

    Values come first: a mistake in them is told before an environment is built. Whatever fails or interrupts this,
    nothing is left of the campaign.

    Args:
        flow: the function.
        values: its values.
        clusters: names of clusters, or blocks.
        wanted: what the caller has chosen.
        same: arguments that all items have.
        each, others: what is chosen for single clusters, by their names, and for all others.
        campaign_id: its id; "" for a new one.
        reuse: gives the id of a campaign to use in the place of the new one, which is not begun then; "" for none.

    Raises:
        OptionError: an option or a value can't be meant, there are no values, or a cluster is unknown.
        PayloadError: a value can't be pickled; its place is named.
        SlurmRayFlowError: a cluster can't be reached or prepared.
        TypeError: the function does not take such arguments.
    """
    wanted.check()
    same = values_at_home(same)
    arguments = _some(argument_values(flow, values, wanted.spread, same, wanted.key))
    campaign_id = campaign_id or uuid.uuid4().hex
    folder, client = CampaignFolder(campaign_id), GridClient(_note)
    with told():
        found = found_clusters(clusters)
        chosen = {name: (each or {}).get(name, others) for name in found}
        with folder.being_made():
            with _removed_on_error(folder):
                with contextlib.closing(ArgumentWriter(folder.path)) as writer:
                    total = store_values(writer, arguments)
                digests = _prepare(flow, folder, found, same, chosen)
                shares = [_share(place, name, chosen[name]) for place, name in enumerate(found)]
                campaign = _campaign(campaign_id, flow, digests, shares, total, wanted, same)
            if other := reuse(campaign):
                folder.remove()
                return other, client
            _begin(client, campaign, folder)
        _note(f"campaign {campaign_id[:8]}: {total} items on {', '.join(found)}")
    return campaign_id, client


@contextlib.contextmanager
def _removed_on_error(folder: CampaignFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        folder.remove()
        raise


def _some(arguments: Iterator[Value]) -> Iterator[Value]:
    """The same values, of which there is one at least.

    Raises:
        OptionError: there is none.
    """
    first = next(arguments, None)
    if first is None:
        raise OptionError("a campaign needs values to go over", advice="write f.campaign(range(100))")
    return itertools.chain([first], arguments)


def found_clusters(clusters: Sequence[Any]) -> dict[str, Cluster]:
    """The clusters by their names, each once.

    Raises:
        OptionError: there are none, or one is unknown.
    """
    names = list(dict.fromkeys(map(name_of_cluster, clusters)))
    if not names:
        raise OptionError("a campaign needs a cluster", advice='write clusters=["local"]')
    return {name: find_cluster(name) for name in names}


def _prepare(
    flow: CampaignFunction,
    folder: CampaignFolder,
    clusters: Mapping[str, Cluster],
    same: dict[str, Any],
    chosen: Mapping[str, OnCluster],
) -> tuple[str, str]:
    """Prepare the clusters, and write what their pilots run; gives the digests of the function and its arguments.

    Raises:
        SlurmRayFlowError: a cluster can't be reached or prepared.
    """
    call = describe_call(flow, Arguments(flow.fn, {}, ((), same)))
    launches = {}
    for name, cluster in clusters.items():
        here = chosen[name]
        options = options_on(cluster, flow.options.stating(**here.options).but(cluster=name))
        prepared = prepare_pilots(call, cluster, options)
        settings = {**pilot_settings(cluster, options, here.workers), **here.scripts}
        launches[name] = launch_as_json(options, prepared, settings)
    folder.write((call.function, call.arguments), launches)
    return call.function, call.arguments


def add_values(flow: TypedFunction, campaign_id: str, client: GridClient, values: Any, key: Any) -> int:
    """Add items to a campaign that goes on; gives how many.

    Raises:
        GridError: it has ended, or another process adds items now.
        OptionError, PayloadError, TypeError: as for `start_campaign`.
    """
    chosen = client.campaign(campaign_id).options
    same = dict.fromkeys(chosen.get(SAME, ()))
    arguments = argument_values(flow, values, bool(chosen.get(SPREAD)), same, key)
    first = next(arguments, None)
    if first is None:
        return 0
    with told():
        return add_arguments(campaign_id, client, itertools.chain([first], arguments))[1]


def add_arguments(campaign_id: str, client: GridClient, values: Iterable[Value]) -> tuple[int, int]:
    """Add items with these arguments to a campaign that goes on; gives the number of the first one, and how many.

    Raises:
        GridError: it has ended, or another process adds items now.
        PayloadError: a value can't be pickled.
    """
    with contextlib.closing(_writer_of(campaign_id, client)) as writer:
        total = writer.count
        try:
            count = store_values(writer, values)
            writer.flush()
        except BaseException:
            writer.abandon()
            raise
        client.add_items(campaign_id, total, count)
        return total, count


def _writer_of(campaign_id: str, client: GridClient) -> ArgumentWriter:
    """A writer behind the campaign's last item. While it is open no other process adds any.

    Raises:
        GridError: the campaign has ended, or another process adds items now.
    """
    while True:
        campaign = client.campaign(campaign_id)
        if campaign.state.final:
            what = f"campaign {campaign_id[:8]} has ended ({campaign.state.value}), and takes no more items"
            raise GridError(what, advice="begin another campaign with them")
        writer = ArgumentWriter(CampaignFolder(campaign_id).path, campaign.total)
        if client.campaign(campaign_id).total == campaign.total:
            return writer
        writer.abandon()  # another process has added items meanwhile


def argument_values(
    flow: TypedFunction, values: Any, spread: bool, same: dict[str, Any], key: str | Callable[[Any], Any] | None
) -> Iterator[Value]:
    """The values as arguments that the function takes.

    Raises:
        OptionError, TypeError: a value can't be meant; its place is named.
    """
    return with_distinct_keys(checked(flow, read_values(flow, values, spread), same), key)


class TakesArguments(Protocol):
    """Takes the pickled arguments of items, one after the other."""

    def add(self, data: bytes, /) -> object: ...


def store_values(writer: TakesArguments, values: Iterable[Value]) -> int:
    """Pickle the arguments of each item; gives how many items there are.

    Raises:
        PayloadError: a value can't be pickled.
    """
    count, began = 0, time.monotonic()
    noted = began
    for value in values:
        try:
            data = _pickled((value.args, value.kwargs))
        except Exception as error:
            kind = type(value.value).__name__
            what = f"{value.place} ({kind}) can't be pickled: {type(error).__name__}: {error}"
            advice = "give plain data, and open files, generators, locks and connections inside the function"
            raise PayloadError(what, where=repr(value.value)[:200], advice=advice) from error
        writer.add(data)
        count += 1
        if not count % 100 and (now := time.monotonic()) - noted > NOTE_SECONDS:
            _note(f"{count:,} values are stored, {count / (now - began):,.0f} a second")
            noted = now
    return count


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Connect to Prefect's server, and show what happens meanwhile in the terminal."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(events.streamed_to(terminal_display()))
        stack.enter_context(connected(ensure_server(_note)))
        stack.enter_context(quiet_console())
        yield


def _campaign(
    campaign_id: str,
    flow: CampaignFunction,
    digests: tuple[str, str],
    shares: Sequence[model.ClusterShare],
    total: int,
    wanted: CampaignOptions,
    same: dict[str, Any],
) -> model.Campaign:
    parameters = [name for name, one in inspect.signature(flow.fn).parameters.items() if one.kind in _BY_PLACE]
    return model.Campaign(
        id=campaign_id, name=wanted.name or flow.name, user=getpass.getuser(), function=flow.name,
        function_digest=digests[0], arguments_digest=digests[1], weight=float(wanted.weight),
        created=time.time(), total=total, retries=wanted.retries, max_failures=wanted.max_failures,
        max_pilots=wanted.max_pilots,
        options={
            PARAMETERS: parameters, SPREAD: wanted.spread, SAME: list(same),
            "priority": wanted.priority, "test": wanted.test, "max_queued": wanted.max_queued, "open": wanted.is_open,
            **({"about": wanted.about[:MOST_ABOUT]} if wanted.about else {}),
        },
        clusters=tuple(shares),
    )  # fmt: skip


def _share(place: int, name: str, chosen: OnCluster) -> model.ClusterShare:
    options = {"max_pilots": chosen.max_pilots} if chosen.max_pilots else {}
    return model.ClusterShare(cluster=name, position=place, options=options)


_BY_PLACE = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _begin(client: GridClient, campaign: model.Campaign, folder: CampaignFolder) -> None:
    """Ask the engine for the campaign. Where its answer does not come, nothing of it may go on."""
    try:
        client.add(campaign)
    except BaseException:
        try:
            client.change(campaign.id, "cancel")  # the engine has it, though it could not say so
        except UnknownCampaignError:
            folder.remove()
        except GridError:  # it may have it, and needs its folder then
            pass
        raise


def _note(text: str) -> None:
    events.publish(events.Note(text))


def name_of_cluster(cluster: Any) -> str:
    """The name by which the engine, another process, finds a cluster.

    Raises:
        OptionError: the cluster is not saved.
    """
    if isinstance(cluster, str):
        return cluster
    if name := saved_name(cluster):
        return name
    what = f"{cluster!r} is not saved, and the grid's engine could not find it"
    raise OptionError(what, advice="`srf init NAME` saves a cluster; write its name here")


def pilot_settings(cluster: Cluster, options: Options, chosen: int | None = None) -> dict[str, Any]:
    """The settings of `remote/driver/pilot.py`."""
    cpus = options.cpus_per_node or (1 if cluster.scheduler is not None else cluster.facts().cpus)
    workers = chosen or options.gpus_per_node or cpus
    idle_seconds = options.keep_warm or IDLE_SECONDS
    return {"workers": workers, "idle_seconds": idle_seconds, "threads": max(cpus // workers, 1)}


def _pickled(arguments: Any) -> bytes:
    """The pickle of an item's arguments, by the rules that arguments of a call have."""
    args, kwargs = arguments
    if pickling.is_plain(args) and (not kwargs or pickling.is_plain(kwargs)):
        return pickle.dumps(arguments, protocol=5)
    file = io.BytesIO()
    pickling.dump(arguments, file, lambda _: True)
    return file.getvalue()


class _LoadedFunction:
    """The function of a campaign that another process has begun."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.fn = function
        self.types = types_of(typed_signature(function))


def function_of(campaign: model.Campaign) -> TypedFunction:
    """The function of a campaign, from the store.

    Raises:
        OptionError: it can't be loaded in this process.
    """
    try:
        CampaignFolder(campaign.id).restore_payloads()
        kind, *found = store.get(campaign.function_digest)
        loaded = resolve_function(*found) if kind == "reference" else found[0]
        return loaded if hasattr(loaded, "types") else _LoadedFunction(loaded)
    except Exception as error:
        what = f"the function of campaign {campaign.id[:8]} can't be loaded here: {type(error).__name__}: {error}"
        raise OptionError(what, advice="add items where the program of the campaign is found") from error
