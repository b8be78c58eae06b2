"""`srf release`: the end of Ray clusters that wait for a next call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.output import Json, Switch, print_error, print_json, print_text
from slurm_ray_flow.core.errors import OptionError, UnknownRunError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.core.warm import Cost, Warm


def release(
    which: str | None = None,
    *,
    all: Annotated[bool, Switch] = False,  # noqa: A002 - what people type
    force: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """End Ray clusters that keep_warm holds for a next call.

    One that has a call just now is left alone.

    Args:
        which: The id of the run that it was got for, or the start of it, or the name of a cluster.
        all: All of them, on all clusters.
        force: One that has a call, too; the call is cancelled.

    Examples:
        srf release 3f2a

        srf release curnagl

        srf release --all
    """
    if (which is None) is not all:
        raise OptionError("say which: a run, a cluster, or --all", advice="`srf runs` shows which runs are warm")
    found = [each for each in _warm() if all or _is_meant(each[0], each[1], which)]
    if not found and not all:
        raise UnknownRunError(f"no warm allocation is called {which!r}", advice="`srf runs` shows which runs are warm")
    ended = [(one, cluster, function, _end(one, cluster, force)) for one, cluster, function in found]
    if json:
        print_json([_described(one, cluster, cost) for one, cluster, _, cost in ended])
    else:
        for one, cluster, function, cost in ended:
            print_text(_told(one, cluster, function, cost))
        if not ended:
            print_text("Nothing is kept warm.")
    if not all and not any(cost for *_, cost in ended):
        sys.exit(1)


def _warm() -> list[tuple[Warm, Cluster, str]]:
    """All warm allocations on the clusters where runs of this machine have left one, with the function's name."""
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.tasks.release import warm_everywhere

    records = list(store.records())
    functions = {record.run_id: record.function for record in records}
    found = warm_everywhere(records, print_error)
    return [(one, cluster, functions.get(one.run_id, "of another machine")) for one, cluster in found]


def _is_meant(one: Warm, cluster: Cluster, which: str | None) -> bool:
    return which is not None and (one.allocation.startswith(which) or cluster.label == which)


def _end(one: Warm, cluster: Cluster, force: bool) -> Cost | None:
    from slurm_ray_flow.tasks.release import end

    return end(one, cluster, force)


def _told(one: Warm, cluster: Cluster, function: str, cost: Cost | None) -> str:
    name = f"run {one.run_id[:8]} ({function} on {cluster.label})"
    if cost is not None:
        return f"released {name}: {cost.whole}"
    return f"left {name} alone: it has a call; --force ends that, too"


def _described(one: Warm, cluster: Cluster, cost: Cost | None) -> dict[str, Any]:
    known = {"run_id": one.run_id, "allocation": one.allocation, "cluster": cluster.label}
    return {**known, "released": cost is not None, **(cost.to_json() if cost else {})}
