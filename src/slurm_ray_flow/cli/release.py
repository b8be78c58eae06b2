"""`srf release`: the end of Ray clusters that wait for a next call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.names import A_RUN
from slurm_ray_flow.cli.output import Json, Switch, print_error, print_json, print_text
from slurm_ray_flow.core.errors import OptionError, UnknownRunError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.core.run import RunRecord
    from slurm_ray_flow.core.warm import Cost, Warm

    WarmEntry = tuple[Warm, Cluster, str]


def release(
    which: Annotated[str | None, A_RUN] = None,
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
    from slurm_ray_flow.tasks.warm import end

    entries = _warm() if which is None else matching_allocations(which, _warm(which))
    ended = [
        (allocation, cluster, function, end(allocation, cluster, force)) for allocation, cluster, function in entries
    ]
    if json:
        print_json([_result_json(allocation, cluster, cost) for allocation, cluster, _, cost in ended])
    else:
        for allocation, cluster, function, cost in ended:
            print_text(_result_text(allocation, cluster, function, cost))
        if not ended:
            print_text("Nothing is kept warm.")
    if not all and not any(cost for *_, cost in ended):
        sys.exit(1)


def _warm(which: str = "") -> list[WarmEntry]:
    """The warm allocations on the clusters where runs of this machine have left one, with the function's name."""
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.tasks.warm import warm_everywhere

    records = list(store.records())
    functions = {record.run_id: record.function for record in records}
    entries = warm_everywhere(allocations_on(which, [record for record in records if record.warm]), print_error)
    return [(warm, cluster, functions.get(warm.run_id, "of another machine")) for warm, cluster in entries]


def allocations_on(which: str, records: list[RunRecord]) -> list[RunRecord]:
    """The warm runs on the named cluster alone, so that no other cluster is waited for."""
    on_cluster = [record for record in records if record.cluster == which]
    clusters = {record.cluster for record in records if which and record.run_id.startswith(which)}
    return on_cluster or [record for record in records if record.cluster in clusters] or records


def matching_allocations(which: str, entries: list[WarmEntry]) -> list[WarmEntry]:
    """The warm allocations on the cluster of this name, else the allocation of the run whose id begins with it.

    Raises:
        UnknownRunError: no warm allocation matches, or several do.
    """
    advice = "`srf runs` shows which runs are warm"
    on_cluster = [entry for entry in entries if entry[1].label == which]
    matching = on_cluster or [entry for entry in entries if which and entry[0].allocation.startswith(which)]
    if not matching:
        raise UnknownRunError(f"no warm allocation is called {which!r}", advice=advice)
    if len(matching) > 1 and not on_cluster:
        names = ", ".join(entry[0].allocation[: len(which) + 8] for entry in matching[:4])
        raise UnknownRunError(f"{len(matching)} warm allocations start with {which!r}: {names}", advice=advice)
    return matching


def _result_text(warm: Warm, cluster: Cluster, function: str, cost: Cost | None) -> str:
    name = f"run {warm.run_id[:8]} ({function} on {cluster.label})"
    if cost is not None:
        return f"released {name}: {cost.whole}"
    return f"left {name} alone: it has a call; --force ends that, too"


def _result_json(warm: Warm, cluster: Cluster, cost: Cost | None) -> dict[str, Any]:
    fields = {"run_id": warm.run_id, "allocation": warm.allocation, "cluster": cluster.label}
    return {**fields, "released": cost is not None, **(cost.to_json() if cost else {})}
