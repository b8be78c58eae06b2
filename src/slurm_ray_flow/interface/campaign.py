"""A campaign from Python: many items of one function, on one or several clusters (docs/decisions/0016)."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import io
import itertools
import pickle
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from slurm_ray_flow.blocks.block_documents import BlockFields
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import find_cluster, slug_of
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.errors import Cancelled, OptionError, PayloadError, SlurmRayFlowError, UnknownCampaignError
from slurm_ray_flow.core.grid import model
from slurm_ray_flow.core.grid.model import CampaignState, ItemState
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import error_of, shorten, with_note
from slurm_ray_flow.flows.pilot import prepare_pilots
from slurm_ray_flow.grid.arguments import ArgumentWriter
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.grid.launching import launch_as_json
from slurm_ray_flow.grid.outcome_log import HEADER, Frame, frame_at, read_frames
from slurm_ray_flow.interface.body import bind
from slurm_ray_flow.interface.parameters import Arguments
from slurm_ray_flow.interface.progress import terminal_display
from slurm_ray_flow.interface.screen import quiet_console
from slurm_ray_flow.interface.session import DecoratedFunction, describe_call
from slurm_ray_flow.interface.settings import options_on
from slurm_ray_flow.remote.shared import failures, pickling
from slurm_ray_flow.remote.shared.protocol import parse_json

R = TypeVar("R")
IDLE_SECONDS = 120.0
"""Seconds after which a pilot without items ends."""
SHORTEST_WAIT, LONGEST_WAIT = 0.1, 1.0


class Campaign(Generic[R]):
    """A campaign of this home. Its engine goes on with it when this process ends.

    Attributes:
        id: names the campaign, for `Campaign.attach`.
    """

    def __init__(self, campaign_id: str, client: GridClient | None = None) -> None:
        self.id = campaign_id
        self._client = client or GridClient()

    @classmethod
    def attach(cls, campaign_id: str = "") -> Campaign[Any]:
        """A campaign that any process has begun.

        Args:
            campaign_id: its id, or the start of it; without one, the newest campaign.

        Raises:
            UnknownCampaignError: there is no such campaign, or several.
        """
        client = GridClient()
        if campaign_id:
            return Campaign(client.campaign(campaign_id).id, client)
        newest = next(iter(client.campaigns()), None)
        if newest is None:
            raise UnknownCampaignError("no campaign was begun from this home", advice="begin one: f.campaign(values)")
        return Campaign(newest.id, client)

    @property
    def state(self) -> CampaignState:
        """The state of the campaign."""
        return self.status().state

    def status(self) -> model.Campaign:
        """Its state and its counts: `total`, `succeeded`, `failed`, `cancelled`, and the reason of its state."""
        return self._client.campaign(self.id)

    def __len__(self) -> int:
        return self.status().total

    def wait(self, timeout: float | None = None) -> model.Campaign:
        """Wait until the campaign has ended; gives its state and counts. Ctrl-C ends the wait alone.

        Raises:
            TimeoutError: it has not ended by then; it goes on.
        """
        for status in self._statuses(timeout):
            if status.state.final:
                return status
        raise AssertionError("it waits until the end")

    def results(
        self, *, in_order: bool = True, return_exceptions: bool = False, timeout: float | None = None
    ) -> Iterator[R]:
        """The values of all items while they come: in the order of the items, or of their ends.

        Ctrl-C ends the wait alone: the campaign goes on, and `Campaign.attach(id)` reads it again.

        Args:
            in_order: give the values in the order of the items, and not as items end.
            return_exceptions: give the exception of a failed item in the place of its value, and go on.
            timeout: seconds for all of them.

        Raises:
            TimeoutError: not all items have ended by then; the campaign goes on.
            RunError: the campaign was cancelled before an item had an outcome; or a worker died at an item.
            BaseException: the exception of the first failed item.
        """
        for number, frame in self._in_order(timeout) if in_order else self._as_they_end(timeout):
            try:
                value = cast(R, _value_of(frame))
            except BaseException as error:
                if not return_exceptions:
                    raise with_note(shortened(error), f"item {number} of campaign {self.id[:8]}")  # noqa: B904 - it is the item's
                value = cast(R, error)
            yield value

    @property
    def failed(self) -> list[int]:
        """The numbers of the items that have failed so far."""
        return [frame.number for frame in self._frames(self.status()) if frame.kind != ItemState.SUCCEEDED]

    def __getitem__(self, number: int) -> R:
        """The value of one item that has ended.

        Raises:
            IndexError: there is no such item.
            LookupError: it has not ended.
            BaseException: its exception.
        """
        status = self.status()
        if not -status.total <= number < status.total:
            raise IndexError(f"campaign {self.id[:8]} has {status.total} items")
        [row] = self._client.items(self.id, number % status.total, 1)
        if row["length"] is None or row["offset"] is None:
            raise LookupError(f"item {row['number']} of campaign {self.id[:8]} has no outcome yet: {row['state']}")
        return cast(R, _value_of(frame_at(CampaignFolder(self.id).outcomes, row["offset"], row["length"])))

    def pause(self) -> None:
        """Begin no more items; those that run go on. `resume` goes on with it."""
        self._client.change(self.id, "pause")

    def resume(self) -> None:
        """Go on with a paused campaign."""
        self._client.change(self.id, "resume")

    def cancel(self) -> None:
        """End the campaign: items that run are ended, the others never begin. Outcomes so far are kept."""
        self._client.change(self.id, "cancel")

    def _statuses(self, timeout: float | None) -> Iterator[model.Campaign]:
        """The state of the campaign again and again; the last one is final."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, ended = SHORTEST_WAIT, -1
        while True:
            status = self.status()
            yield status
            if status.state.final:
                return
            pause = SHORTEST_WAIT if status.ended != ended else min(1.5 * pause, LONGEST_WAIT)
            ended = status.ended
            if deadline is not None and time.monotonic() + pause > deadline:
                what = f"{status.total - status.ended} of {status.total} items have not ended within {timeout} s"
                raise TimeoutError(f"{what}; campaign {self.id[:8]} goes on")
            time.sleep(pause)

    def _frames(self, status: model.Campaign, offset: int = 0) -> Iterator[Frame]:
        if status.outcomes_size > offset:
            yield from read_frames(CampaignFolder(self.id).outcomes, offset, status.outcomes_size)

    def _as_they_end(self, timeout: float | None) -> Iterator[tuple[int, Frame]]:
        offset, count, status = 0, 0, None
        for status in self._statuses(timeout):
            for frame in self._frames(status, offset):
                count += 1
                yield frame.number, frame
            offset = status.outcomes_size
        if status is not None and count < status.total:
            raise _without_outcome(status)

    def _in_order(self, timeout: float | None) -> Iterator[tuple[int, Frame]]:
        """Outcomes in the order of the items; those that come early wait on the disk, and only their places here."""
        wanted, offset, status = 0, 0, None
        places: dict[int, tuple[int, int]] = {}
        path = CampaignFolder(self.id).outcomes
        for status in self._statuses(timeout):
            for frame in self._frames(status, offset):
                length = HEADER.size + len(frame.data)
                if frame.number == wanted:
                    yield wanted, frame
                    wanted += 1
                else:
                    places[frame.number] = (offset, length)
                offset += length
                while wanted in places:
                    yield wanted, frame_at(path, *places.pop(wanted))
                    wanted += 1
        if status is not None and wanted < status.total:
            raise _without_outcome(status)

    def __reduce__(self) -> tuple[Any, ...]:
        return Campaign, (self.id,)

    def __repr__(self) -> str:
        return f"Campaign({self.id!r})"


def shortened(error: BaseException) -> BaseException:
    """An error without the frames of this package."""
    shorten(error)
    return error


def _value_of(frame: Frame) -> Any:
    """The value of an outcome, or its exception raised."""
    if frame.kind == ItemState.SUCCEEDED:
        return pickling.load(io.BytesIO(frame.data), [])
    if frame.kind == ItemState.CRASHED or frame.data.startswith(b"{"):  # an outcome without an exception, as JSON
        said = parse_json(frame.data) if frame.data else {}
        raise error_of(said.get("cause") or "crashed", said.get("message") or "the worker died", "")
    packed = pickling.load(io.BytesIO(frame.data), [])
    raise with_note(failures.unpack(packed), packed.get("traceback", ""))


def _without_outcome(status: model.Campaign) -> SlurmRayFlowError:
    lacking = status.total - status.succeeded - status.failed
    what = f"{lacking} of {status.total} items have no outcome: the campaign is {status.state.value}"
    return Cancelled(what, where=f"campaign {status.id[:8]}", advice=status.reason)


@dataclasses.dataclass(frozen=True)
class CampaignOptions:
    """What a caller may choose for a campaign."""

    name: str = ""
    weight: float = 1.0
    retries: int = 0
    max_failures: int | None = None
    max_pilots: int = 8
    spread: bool = False

    def check(self) -> None:
        """Check the values.

        Raises:
            OptionError: one can't be meant.
        """
        for name, least in (("retries", 0), ("max_pilots", 1), ("max_failures", 0)):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not is_count and not (name == "max_failures" and value is None):
                raise OptionError(f"{name}={value!r} must be a whole number of {least} or more")
        if not isinstance(self.weight, int | float) or not self.weight > 0:
            raise OptionError(f"weight={self.weight!r} must be a number above 0")


def start_campaign(
    flow: DecoratedFunction,
    values: Iterable[Any],
    clusters: Sequence[Any],
    wanted: CampaignOptions,
    same: dict[str, Any],
) -> Campaign[Any]:
    """Prepare the clusters, store the arguments, and begin the campaign.

    Raises:
        OptionError: an option can't be meant, there are no values, or a cluster is unknown.
        PayloadError: a value can't be pickled; its place is named.
        SlurmRayFlowError: a cluster can't be reached or prepared.
    """
    wanted.check()
    remaining = iter(values)
    first = next(remaining, _NONE)
    if first is _NONE:
        raise OptionError("a campaign needs values to go over", advice="write f.campaign(range(100))")
    bind(flow.fn, *_arguments_of(first, wanted.spread, same))
    campaign_id = uuid.uuid4().hex
    folder = CampaignFolder(campaign_id)
    with contextlib.ExitStack() as stack:
        stack.enter_context(events.streamed_to(terminal_display()))
        stack.enter_context(connected(ensure_server(_note)))
        stack.enter_context(quiet_console())
        call = describe_call(flow, Arguments(flow.fn, {}, ((), same)))
        launches, shares = {}, []
        for position, name in enumerate(dict.fromkeys(_name_of(cluster) for cluster in clusters)):
            cluster = find_cluster(name)
            options = options_on(cluster, flow.options.but(cluster=name))
            prepared = prepare_pilots(call, cluster, options)
            launches[name] = launch_as_json(options, prepared, _pilot_settings(cluster, options))
            shares.append(model.ClusterShare(cluster=name, position=position))
        try:
            folder.write((call.function, call.arguments), launches)
            total = _write_arguments(folder, itertools.chain([first], remaining), wanted.spread)
            campaign = model.Campaign(
                id=campaign_id, name=wanted.name or flow.name, user=getpass.getuser(), function=flow.name,
                function_digest=call.function, arguments_digest=call.arguments, weight=float(wanted.weight),
                created=time.time(), total=total, retries=wanted.retries, max_failures=wanted.max_failures,
                max_pilots=wanted.max_pilots, clusters=tuple(shares),
            )  # fmt: skip
            client = GridClient(_note)
            client.add({**dataclasses.asdict(campaign), "state": campaign.state.value})
        except BaseException:
            folder.remove()
            raise
        _note(f"campaign {campaign_id[:8]}: {total} items on {', '.join(launches)}")
    return Campaign(campaign_id, client)


_NONE = object()


def _note(text: str) -> None:
    events.publish(events.Note(text))


def _name_of(cluster: Any) -> str:
    """The name by which the engine, another process, finds a cluster.

    Raises:
        OptionError: the cluster is not saved.
    """
    if isinstance(cluster, str):
        return cluster
    if isinstance(cluster, BlockFields) and cluster._block_document_name is not None:
        return slug_of(cast(Cluster, cluster))
    if isinstance(cluster, LocalMachine) and cluster == LocalMachine():
        return "local"
    what = f"{cluster!r} is not saved, and the grid's engine could not find it"
    raise OptionError(what, advice="`srf init NAME` saves a cluster; write its name here")


def _pilot_settings(cluster: Cluster, options: Options) -> dict[str, Any]:
    """The settings of `remote/driver/pilot.py`."""
    cpus = options.cpus_per_node or (1 if cluster.scheduler is not None else cluster.facts().cpus)
    workers = max(options.gpus_per_node, 1) if options.gpus_per_node else cpus
    return {"workers": workers, "idle_seconds": IDLE_SECONDS, "threads": max(cpus // workers, 1)}


def _arguments_of(value: Any, spread: bool, same: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not spread:
        return (value,), dict(same)
    if isinstance(value, Mapping):
        return (), {**same, **value}
    return tuple(value), dict(same)


def _write_arguments(folder: CampaignFolder, values: Iterable[Any], spread: bool) -> int:
    """Pickle the arguments of each item; gives how many items there are.

    Raises:
        PayloadError: a value can't be pickled.
    """
    count = 0
    with contextlib.closing(ArgumentWriter(folder.path)) as writer:
        for value in values:
            try:
                writer.add(_pickled(_arguments_of(value, spread, {})))
            except Exception as error:
                what = f"value {count} ({type(value).__name__}) can't be pickled: {type(error).__name__}: {error}"
                advice = "give plain data, and open files, generators, locks and connections inside the function"
                raise PayloadError(what, where=repr(value)[:200], advice=advice) from error
            count += 1
    return count


def _pickled(arguments: Any) -> bytes:
    """The pickle of an item's arguments, by the rules that arguments of a call have."""
    args, kwargs = arguments
    if pickling.is_plain(args) and not kwargs:
        return pickle.dumps(arguments, protocol=5)
    file = io.BytesIO()
    pickling.dump(arguments, file, lambda _: True)
    return file.getvalue()
