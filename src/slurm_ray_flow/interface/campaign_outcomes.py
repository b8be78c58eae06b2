"""The outcomes of a campaign as its log has them, and their values.

An item that was resubmitted has several frames in the log: its earlier outcome, a frame of the kind "waiting", its next
outcome. The last one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slurm_ray_flow.core.errors import Cancelled, SlurmRayFlowError
from slurm_ray_flow.core.grid import model
from slurm_ray_flow.core.grid.model import ItemState
from slurm_ray_flow.core.items import outcome_of_item
from slurm_ray_flow.core.run import shorten
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.outcome_log import HEADER, Frame, frame_at, read_frames
from slurm_ray_flow.remote.shared.items import ERROR, VALUE


class OutcomeReader:
    """Reads the frames of a campaign's log as it grows, those that count alone.

    Attributes:
        superseded: the items whose earlier outcome does not count any more, among those of the last reading.
    """

    def __init__(self, campaign_id: str) -> None:
        self._path = CampaignFolder(campaign_id).outcomes
        self._offset = 0
        self.superseded: dict[int, int] = {}

    def new_frames(self, status: model.Campaign) -> Iterator[tuple[int, Frame]]:
        """The frames since the last reading, with their offsets. They are to be read to the end.

        An outcome is left out where its item was resubmitted before the log had the size that `status` has.
        """
        begin, self._offset = self._offset, max(status.outcomes_size, self._offset)
        self.superseded = {}
        if status.resubmitted and begin < self._offset:
            for offset, frame in self._frames(begin):
                if frame.kind == ItemState.WAITING:
                    self.superseded[frame.number] = offset
        return self._counting(begin) if begin < self._offset else iter(())

    def _counting(self, begin: int) -> Iterator[tuple[int, Frame]]:
        for offset, frame in self._frames(begin):
            if frame.kind != ItemState.WAITING and offset > self.superseded.get(frame.number, -1):
                yield offset, frame

    def frame_at(self, offset: int, length: int) -> Frame:
        """The frame at a place."""
        return frame_at(self._path, offset, length)

    def _frames(self, begin: int) -> Iterator[tuple[int, Frame]]:
        offset = begin
        for frame in read_frames(self._path, begin, self._offset):
            yield offset, frame
            offset += length_of(frame)


def length_of(frame: Frame) -> int:
    """The bytes of a frame in the log."""
    return HEADER.size + len(frame.data)


class Numbers:
    """A set of items' numbers, a bit for each: a million of them take 125 kB."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, number: int) -> bool:
        """Add a number; says whether it is new."""
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits) + 1024))
        is_new = not self._bits[byte] & bit
        self._bits[byte] |= bit
        self.count += is_new
        return is_new


def value_of(frame: Frame) -> Any:
    """The value of an outcome, or its exception raised."""
    if frame.kind == ItemState.CANCELLED:
        raise Cancelled(f"item {frame.number} was cancelled, and has no value")
    kind = VALUE if frame.kind == ItemState.SUCCEEDED else ERROR
    return outcome_of_item(kind, frame.data, "").unwrap()


def without_outcome(status: model.Campaign) -> SlurmRayFlowError:
    """The error for items that a campaign has ended without."""
    lacking = status.total - status.succeeded - status.failed
    what = f"{lacking} of {status.total} items have no outcome: the campaign is {status.state.value}"
    return Cancelled(what, where=f"campaign {status.id[:8]}", advice=status.reason)


def shortened(error: BaseException) -> BaseException:
    """An error without the frames of this package."""
    shorten(error)
    return error
