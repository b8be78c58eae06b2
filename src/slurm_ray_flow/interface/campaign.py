"""A campaign from Python: many items of one function, on one or several clusters (docs/decisions/0016)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.errors import UnknownCampaignError
from slurm_ray_flow.core.grid import model
from slurm_ray_flow.core.grid.model import CampaignState, ItemState
from slurm_ray_flow.core.run import with_note
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.grid.outcome_log import Frame
from slurm_ray_flow.interface.campaign_outcomes import (
    Numbers,
    OutcomeReader,
    length_of,
    shortened,
    value_of,
    without_outcome,
)
from slurm_ray_flow.interface.handle import Producer
from slurm_ray_flow.interface.progress import terminal_display

if TYPE_CHECKING:
    from slurm_ray_flow.interface.campaign_start import CampaignFunction

R = TypeVar("R")
SHORTEST_WAIT, LONGEST_WAIT = 0.1, 1.0


class Campaign(Producer, Generic[R]):
    """A campaign of this home. Its engine goes on with it when this process ends.

    Attributes:
        id: names the campaign, for `Campaign.attach`.
    """

    def __init__(
        self, campaign_id: str, client: GridClient | None = None, function: CampaignFunction | None = None
    ) -> None:
        self.id = campaign_id
        self._client, self._function = client or GridClient(), function

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
            found = client.campaign(campaign_id)
            if found.kind == model.MAP:
                what = f"{campaign_id!r} is a map, and no campaign"
                raise UnknownCampaignError(what, advice=f"write Handles.attach({campaign_id!r})")
            return Campaign(found.id, client)
        newest = next((one for one in client.campaigns(own=True) if one.kind == model.CAMPAIGN), None)
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
                value = cast(R, value_of(frame))
            except BaseException as error:
                if not return_exceptions:
                    raise with_note(shortened(error), f"item {number} of campaign {self.id[:8]}")  # noqa: B904 - it is the item's
                value = cast(R, error)
            yield value

    @property
    def failed(self) -> list[int]:
        """The numbers of the items that have failed so far."""
        frames = OutcomeReader(self.id).new_frames(self.status())
        return [frame.number for _, frame in frames if frame.kind in (ItemState.FAILED, ItemState.CRASHED)]

    def __getitem__(self, number: int) -> R:
        """The value of one item that has ended.

        Raises:
            IndexError: there is no such item.
            LookupError: it has not ended.
            BaseException: its exception.
        """
        [row] = self._client.items(self.id, self._number(number), 1)
        if row["length"] is None or row["offset"] is None:
            raise LookupError(f"item {row['number']} of campaign {self.id[:8]} has no outcome: it is {row['state']}")
        return cast(R, value_of(OutcomeReader(self.id).frame_at(row["offset"], row["length"])))

    def log(self, number: int) -> str:
        """What an item printed in its last attempt that has ended; at most the last MiB of it, which is said then.

        Raises:
            IndexError: there is no such item.
            LookupError: no attempt of it has ended.
            SlurmRayFlowError: the cluster does not answer, or the files of the pilot's run are gone.
        """
        found = self._client.log(self.id, self._number(number))
        if not found["ended"]:
            raise LookupError(f"item {found['number']} of campaign {self.id[:8]} has printed nothing that is kept yet")
        return str(found["text"])

    def add(self, values: Iterable[Any] | Path, *, key: str | Callable[[Any], Any] | None = None) -> int:
        """Add items to a campaign that goes on; gives how many. `spread` and `same` are those of `f.campaign`.

        Args:
            values: as for `f.campaign`.
            key: as for `f.campaign`; the new values are compared with one another.

        Raises:
            GridError: the campaign has ended, or another process adds items now.
            OptionError: a value can't be meant, or the campaign's function can't be loaded in this process.
            PayloadError: a value can't be pickled; its place is named.
            TypeError: the function does not take such arguments.
        """
        from slurm_ray_flow.interface.campaign_start import add_values, function_of

        function = self._function or function_of(self.status())
        return add_values(function, self.id, self._client, values, key)

    def resubmit(self, only: Iterable[int] | None = None) -> int:
        """Have items without a value run again, those that failed, crashed or were cancelled; gives how many.

        They are as if they had never been tried. A campaign that has ended goes on by it. `results` that were begun
        before give no item twice; `results` and `[number]` from now on give the new outcomes.

        Args:
            only: the numbers of some items; those that have a value or have not ended are passed over.

        Raises:
            GridError: there is no such item, or the campaign is being cancelled.
        """
        return self._client.resubmit(self.id, None if only is None else sorted({int(number) for number in only}))

    def to_table(self, path: str | Path) -> int:
        """Write a table with a row an item, as far as the campaign is; gives how many rows.

        Its columns are `number`, the arguments by their names, `state`, `seconds`, `value` (or `value.KEY` for each key
        where values are dictionaries of plain values) and `error`. What is no plain value is JSON, or its `repr`.

        Args:
            path: it ends with ".csv", ".jsonl" or ".parquet", which needs pyarrow. A file that is there is replaced
                when the new one is whole.

        Raises:
            OptionError: the path ends otherwise, or pyarrow is not installed.
            GridError: the campaign's files can't be read.
        """
        from slurm_ray_flow.interface.campaign_table import write_table

        return write_table(self.status(), self._client, Path(path))

    def _number(self, number: int) -> int:
        total = self.status().total
        if not -total <= number < total:
            raise IndexError(f"campaign {self.id[:8]} has {total} items")
        return number % total

    def pause(self) -> None:
        """Begin no more items; those that run go on. `resume` goes on with it."""
        self._client.change(self.id, "pause")

    def resume(self) -> None:
        """Go on with a paused campaign."""
        self._client.change(self.id, "resume")

    def cancel(self, only: Iterable[int] | None = None) -> None:
        """End the campaign: items that run are ended, the others never begin. Outcomes so far are kept.

        Args:
            only: the numbers of some items; the others go on. One that a pilot has begun runs to its end there, but has
                no value.

        Raises:
            GridError: there is no such item, or the campaign has ended.
        """
        if only is None:
            self._client.change(self.id, "cancel")
        else:
            self._client.cancel_items(self.id, sorted({int(number) for number in only}))

    def _statuses(self, timeout: float | None) -> Iterator[model.Campaign]:
        """The state of the campaign again and again; the last one is final."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, ended, told = SHORTEST_WAIT, -1, ""
        while True:
            status = self._client.campaign_to_follow(self.id, _tell)
            if status.state is CampaignState.PAUSED and status.reason != told:
                told = status.reason
                _tell(f"campaign {self.id[:8]} is paused: {told}; `srf grid resume {self.id[:8]}` goes on with it")
            elif status.obstacle and status.obstacle != told:
                told = status.obstacle
                _tell(f"campaign {self.id[:8]} waits: {told}")
            yield status
            if status.state.final:
                return
            pause = SHORTEST_WAIT if status.ended != ended else min(1.5 * pause, LONGEST_WAIT)
            ended = status.ended
            if deadline is not None and time.monotonic() + pause > deadline:
                what = f"{status.total - status.ended} of {status.total} items have not ended within {timeout} s"
                raise TimeoutError(f"{what}; campaign {self.id[:8]} goes on")
            time.sleep(pause)

    def _as_they_end(self, timeout: float | None) -> Iterator[tuple[int, Frame]]:
        reader, given, status = OutcomeReader(self.id), Numbers(), None
        for status in self._statuses(timeout):
            for _, frame in reader.new_frames(status):
                if given.add(frame.number):  # one that was resubmitted since has been given before
                    yield frame.number, frame
        if status is not None and given.count < status.total:
            raise without_outcome(status)

    def _in_order(self, timeout: float | None) -> Iterator[tuple[int, Frame]]:
        """Outcomes in the order of the items; those that come early wait on the disk, and only their places here."""
        reader, wanted, status = OutcomeReader(self.id), 0, None
        places: dict[int, tuple[int, int]] = {}
        for status in self._statuses(timeout):
            frames = reader.new_frames(status)
            for number in places.keys() & reader.superseded.keys():
                del places[number]
            for offset, frame in frames:
                if frame.number == wanted:
                    yield wanted, frame
                    wanted += 1
                elif frame.number > wanted:
                    places[frame.number] = (offset, length_of(frame))
                while wanted in places:
                    yield wanted, reader.frame_at(*places.pop(wanted))
                    wanted += 1
        if status is not None and wanted < status.total:
            raise without_outcome(status)

    def __reduce__(self) -> tuple[Any, ...]:
        return Campaign, (self.id,)

    def __repr__(self) -> str:
        return f"Campaign({self.id!r})"


def _tell(text: str) -> None:
    """Write a line for people: whoever waits sees why."""
    with events.streamed_to(terminal_display()):
        events.publish(events.Warned(text))
