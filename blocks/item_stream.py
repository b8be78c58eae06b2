"""Home's side of an item stream: bundles of items go to a running call, and results come back while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.items import ItemResult, parse_results
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.remote.shared.items import CLOSED, RESULTS, VALUES, Item, bundle_name, log_name, pack_bundle

PATIENCE, SHORTEST_PAUSE = 3.0, 0.1


class ItemStream:
    """The items of one run, on any kind of cluster. It keeps nothing: whoever reads results keeps the offset.

    Args:
        cluster: where the run is.
        paths: the run whose call takes the items (`remote/driver/items.py`).
    """

    def __init__(self, cluster: Cluster, paths: RunPaths) -> None:
        self._cluster, self._folder = cluster, paths.items

    def place(self, bundles: Mapping[int, Iterable[Item]]) -> None:
        """Hand bundles over, by their numbers; a number is used once. The call may not have begun yet.

        Raises:
            SlurmRayFlowError: they can't be written. Some may be there; the same ones may be placed again.
        """
        self._cluster.place({self._folder / bundle_name(number): pack_bundle(bundles[number]) for number in bundles})

    def withdraw(self, bundles: Sequence[int]) -> list[int]:
        """Take bundles back that the call has not taken; gives those that home has now, and the call never will."""
        paths = [str(self._folder / bundle_name(number)) for number in bundles]
        won = self._cluster.ask_all([("items.withdraw", {"path": path}) for path in paths])
        return [number for number, has_it in zip(bundles, won, strict=True) if has_it]

    def close(self) -> None:
        """Have the call end once it has no bundle left; no more may be placed."""
        self._cluster.write(self._folder / CLOSED, b"")

    def results(self, offset: int, within: float) -> tuple[list[ItemResult], int]:
        """The next results, some thousands at most.

        Args:
            offset: what the reading before has given; 0 at first.
            within: how many seconds to wait for one.

        Returns:
            The results, and the offset for the next reading.
        """
        [data] = self._cluster.watch([(self._folder / RESULTS, offset)], within)
        results, taken = parse_results(data)
        return results, offset + taken

    def values(self, results: Iterable[ItemResult], patience: float = PATIENCE) -> Iterator[bytes | None]:
        """The bytes of results, in their order; None for one whose bytes are damaged.

        A megabyte comes with each request: in the order in which they were written, small ones cost next to nothing.

        Args:
            results: the results.
            patience: seconds to wait, in all, for bytes that are not there yet: a network's file system may show the
                line of a result some moments before its bytes.
        """
        reader, deadline = _Reader(self._cluster, self._folder / VALUES), time.monotonic() + patience
        for result in results:
            pause = SHORTEST_PAUSE
            while (data := result.verified(reader.read(result.offset, result.length))) is None:
                if time.monotonic() + pause > deadline:
                    break
                time.sleep(pause)
                pause *= 2
                reader.forget()
            yield data

    def remove_values(self) -> None:
        """Remove the bytes of all results, once home has them and the call has ended."""
        self._cluster.remove(self._folder / VALUES)

    def printed(self, result: ItemResult) -> bytes:
        """What an item printed, a megabyte of it at most."""
        if result.log is None:
            return b""
        worker, start, length = result.log
        return self._cluster.read(self._folder / log_name(worker), start)[:length]


class _Reader:
    """Reads pieces of a file that mostly follow one another."""

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self._path = cluster, path
        self._held, self._start = bytearray(), 0

    def read(self, offset: int, length: int) -> bytearray:
        """The bytes from `offset` on; fewer where the file is shorter."""
        held = self._held
        if self._start <= offset <= self._start + len(held):
            del held[: offset - self._start]
        else:
            held.clear()
        self._start = offset
        while len(held) < length and (piece := self._cluster.read(self._path, offset + len(held))):
            held += piece
        return held[:length]

    def forget(self) -> None:
        """Read again what was read before."""
        self._held.clear()
