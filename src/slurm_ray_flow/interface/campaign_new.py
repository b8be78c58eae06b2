"""A campaign over what is new: what an earlier campaign of the function has a value of is not run again."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from slurm_ray_flow.core.errors import GridError, OptionError
from slurm_ray_flow.core.grid import model
from slurm_ray_flow.core.grid.model import ItemState
from slurm_ray_flow.grid.arguments import ArgumentReader
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.interface.campaign import Campaign
from slurm_ray_flow.interface.campaign_outcomes import OutcomeReader, length_of, value_of
from slurm_ray_flow.interface.parameters import Arguments
from slurm_ray_flow.interface.session import DecoratedFunction, describe_call
from slurm_ray_flow.remote.shared import pickling

R = TypeVar("R")


class KnownValue(NamedTuple):
    """Where the value of an earlier item is."""

    campaign: str
    offset: int
    length: int


class NewItems(Generic[R]):
    """The values of a call of `campaign_of_new`, earlier ones and new ones.

    Attributes:
        campaign: the campaign of what is new; None where nothing is.
        known: how many values earlier campaigns have.
    """

    def __init__(self, places: Sequence[KnownValue | None], campaign: Campaign[R] | None) -> None:
        self._places, self.campaign = places, campaign
        self.known = sum(place is not None for place in places)

    def results(self, *, return_exceptions: bool = False) -> Iterator[R]:
        """The values in the order in which they were given; see `Campaign.results`."""
        new = iter(()) if self.campaign is None else self.campaign.results(return_exceptions=return_exceptions)
        for place in self._places:
            if place is None:
                yield next(new)
            else:
                yield cast(R, value_of(OutcomeReader(place.campaign).frame_at(place.offset, place.length)))

    def cancel(self) -> None:
        """Cancel what is new."""
        if self.campaign is not None:
            self.campaign.cancel()


def places_of(flow: DecoratedFunction, values: Iterable[Any], key: str) -> list[KnownValue | None]:
    """Where earlier campaigns have the values of these arguments; None for what is new.

    The campaigns are those of the same function, by its module and name, with the same common arguments; the newest
    value counts. A function that travels by value is another one after each change of its code.

    Args:
        key: the name of an argument, or of an entry of a value that is a mapping.

    Raises:
        OptionError: a value has no such key.
    """
    wanted = [key_of(flow.fn, (value,), {}, key) for value in values]
    call = describe_call(flow, Arguments(flow.fn, {}, ((), {})))
    found: dict[str, KnownValue] = {}
    missing = set(wanted)
    for campaign in GridClient().campaigns(own=True):
        same = (campaign.function_digest, campaign.arguments_digest) == (call.function, call.arguments)
        if same and missing and campaign.succeeded:
            found |= {name: place for name, place in _values_in(flow, campaign, key).items() if name in missing}
            missing -= found.keys()
    return [found.get(name) for name in wanted]


def key_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], key: str) -> str:
    """The key of a call as a text that is the same for equal plain values.

    Raises:
        OptionError: the call has no such argument, and its first one no such entry.
    """
    arguments = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    first = args[0] if args else None
    for holder in (arguments, first if isinstance(first, Mapping) else {}):
        if key in holder:
            return json.dumps(holder[key], sort_keys=True, default=repr)
    names = ", ".join(map(str, [*arguments, *(first if isinstance(first, Mapping) else ())])) or "none"
    raise OptionError(f"key={key!r} is no argument of the call", where=repr(args)[:200], advice=f"there are: {names}")


def _values_in(flow: DecoratedFunction, campaign: model.Campaign, key: str) -> dict[str, KnownValue]:
    """The values of a campaign's items by their keys."""
    frames = OutcomeReader(campaign.id).new_frames(campaign)
    found: dict[str, KnownValue] = {}
    try:
        places = {
            frame.number: KnownValue(campaign.id, offset, length_of(frame))
            for offset, frame in frames
            if frame.kind == ItemState.SUCCEEDED
        }
        reader = ArgumentReader(CampaignFolder(campaign.id).path)
        for number, data in reader.bytes_of(sorted(places)):
            args, kwargs = pickling.load(io.BytesIO(data), [])
            try:
                found[key_of(flow.fn, args, kwargs, key)] = places[number]
            except (OptionError, TypeError):  # an item of another form
                continue
    except GridError:  # its files are gone
        return found
    return found
