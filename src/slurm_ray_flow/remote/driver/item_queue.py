"""The items that a pilot has taken and not handed out yet, and the size of the chunks in which it hands them out."""

from __future__ import annotations

import collections
import os
import time
from typing import Deque, List, Set

from slurm_ray_flow.remote.driver.items import ItemSource
from slurm_ray_flow.remote.driver.pilot_worker import Item
from slurm_ray_flow.remote.shared import script_end
from slurm_ray_flow.remote.shared.events import RunFiles

CHUNK_SECONDS, LARGEST_CHUNK = 0.5, 10_000
CHUNK_BYTES = 8 << 20
AHEAD = 2
"""Chunks for each worker that wait here; what is not taken, home can still withdraw."""
LISTING_SECONDS = 1.0
"""Seconds after which the folder is listed again, though its time is the same: that may be too coarse to change."""


def chunk_size(mean_seconds: float) -> int:
    """The number of items in a chunk, such that it takes half a second.

    Args:
        mean_seconds: of the pilot's items so far; 0 before the first has ended.
    """
    if mean_seconds <= 0:
        return 1
    return int(max(1, min(CHUNK_SECONDS / mean_seconds, LARGEST_CHUNK)))


class ItemQueue:
    """The items of the taken bundles that no worker has.

    Args:
        run: the run.
        workers: the number of workers.
    """

    def __init__(self, run: RunFiles, workers: int) -> None:
        self._run, self._workers = run, workers
        self._source = ItemSource(run.items)
        self._waiting: Deque[Item] = collections.deque()
        self._folder_time, self._listed_at, self._closed = -1, float("-inf"), False
        self._said: Set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_over(self) -> bool:
        """Whether home has closed the stream, and no bundle and no item waits."""
        return self._closed and not self._waiting

    def has_room(self, mean_seconds: float) -> bool:
        """Whether more bundles are wanted."""
        return not self._closed and len(self._waiting) < AHEAD * self._workers * chunk_size(mean_seconds)

    def fill(self, mean_seconds: float) -> None:
        """Take bundles while there is room."""
        while self.has_room(mean_seconds) and self._may_be_new():
            closed = self._source.closed  # read before the bundles, so that no bundle placed before the end is missed
            if not self._take():
                self._closed = closed
                return

    def _may_be_new(self) -> bool:
        """Whether the folder may have a bundle. To read its time is cheap, however many bundles it had."""
        try:
            folder_time = os.stat(self._run.items).st_mtime_ns
        except OSError:
            return False
        now = time.monotonic()
        if folder_time == self._folder_time and now - self._listed_at < LISTING_SECONDS:
            return False
        self._folder_time, self._listed_at = folder_time, now
        return True

    def _take(self) -> bool:
        try:
            bundle = self._source.take()
        except (OSError, ValueError) as error:  # home sees that its items have no result
            text = "a bundle of items can't be read: {}".format(error)
            if text not in self._said:
                self._said.add(text)
                script_end.say(self._run.log, text)
            return True
        if bundle is None:
            return False
        self._waiting.extend((bundle.number, number, data) for number, data in bundle.items)
        self._folder_time = -1  # there may be more
        return True

    def next_chunk(self, mean_seconds: float) -> List[Item]:
        """The items for the next chunk, fair parts of the last ones; empty if none waits."""
        share = -(-len(self._waiting) // self._workers)
        items: List[Item] = []
        size = 0
        while self._waiting and len(items) < min(chunk_size(mean_seconds), share) and size < CHUNK_BYTES:
            items.append(self._waiting.popleft())
            size += len(items[-1][2])
        return items

    def give_back(self, items: List[Item]) -> None:
        """Put items to the front that were handed out and have not begun."""
        self._waiting.extendleft(reversed(items))
