"""Home's side of an item stream: bundles of items go to a running call, and results come back while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.items import ItemResult, parse_results
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.remote.shared.items import CLOSED, RESULTS, VALUES, Item, bundle_name, pack_bundle


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

    def values(self, results: Iterable[ItemResult]) -> Iterator[bytes | None]:
        """The bytes of results, in their order; None for one whose bytes are damaged.

        A megabyte comes with each request: in the order in which they were written, small ones cost next to nothing.
        """
        held, start = bytearray(), 0
        for result in results:
            if start <= result.offset <= start + len(held):
                del held[: result.offset - start]
            else:
                held.clear()
            start = result.offset
            while len(held) < result.length and (piece := self._cluster.read(self._folder / VALUES, start + len(held))):
                held += piece
            yield result.verified(held[: result.length])
