"""`srf clusters`, `srf check`, `srf forget`: saved clusters, their load, their findings, their removal."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.names import A_CLUSTER, KINDS, cluster_named, use_server
from slurm_ray_flow.cli.output import STATES, Json, Switch, print_json, print_table, print_text
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError
from slurm_ray_flow.core.lock import clock

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.blocks.clusters import SavedCluster
    from slurm_ray_flow.core.cluster_report import CheckResult
    from slurm_ray_flow.tasks.cluster_report import ClusterLoad


def check(cluster: Annotated[str, A_CLUSTER] = "local", *, json: Json = False) -> None:
    """Look whether a cluster can be used, and say what to do about each finding.

    Exits with 1 when something failed.

    Examples:
        srf check

        srf check desi

        srf check curnagl --json

    Args:
        cluster: Its name; "local" is this machine.
    """
    if not show_findings(cluster_named(cluster), json=json):
        sys.exit(1)


def show_findings(cluster: Cluster, *, json: bool = False) -> bool:
    """Check a cluster and write the findings; gives whether it can be used."""
    from slurm_ray_flow.tasks.cluster_report import check as findings_of

    findings = findings_of(cluster)
    failed = [one.name for one in findings if one.state == "failed"]
    if json:
        print_json([dataclasses.asdict(finding) for finding in findings])
        return not failed
    print_table(["WHAT", "STATE", "FOUND", "WHAT TO DO"], _rows(findings), STATES)
    print_text(_summary(cluster.label, failed))
    return not failed


def _summary(label: str, failed: list[str]) -> str:
    return f"{label} can't be used yet: {', '.join(failed)}" if failed else f"{label} can be used"


def _rows(findings: list[CheckResult]) -> list[list[str]]:
    """A row for each cluster."""
    known = [one for one in findings if one.state != "not known"]
    rows = [[one.name, one.state, one.found, one.advice] for one in known]
    if len(known) < len(findings):
        rest = next(one for one in findings if one.state == "not known")
        rows.append(["all else" if known else "all", rest.state, rest.found, rest.advice])
    return rows


COLUMNS = ["NAME", "KIND", "HOST", "STATE", "LOAD", "QUEUE"]


def clusters(
    name: Annotated[str | None, A_CLUSTER] = None, *, offline: Annotated[bool, Switch] = False, json: Json = False
) -> None:
    """Show all saved clusters with their load and queue, or the partitions of one.

    They are asked at once, for ten seconds at most; one that does not answer is shown as away. Of a Slurm cluster the
    load is that of the partition which jobs go to, and the queue has your own jobs. Nobody is asked for a password.

    Examples:
        srf clusters

        srf clusters --offline

        srf clusters curnagl

        srf clusters --json

    Args:
        name: A cluster of Slurm's: show each partition's limits, what a node of it has, and how much is taken.
        offline: Ask none of them; show what is saved.
    """
    if name is not None:
        _partitions(name, json)
        return
    from slurm_ray_flow.blocks.clusters import SavedCluster, saved_clusters

    use_server()
    found = [SavedCluster("local", "local-machine", "this machine"), *saved_clusters()]
    loads: list[ClusterLoad | None] = [None] * len(found) if offline else _loads(found)
    if json:
        print_json([_values(*pair) for pair in zip(found, loads, strict=True)])
        return
    columns = COLUMNS[:3] if offline else COLUMNS
    print_table(columns, [_row(*pair)[: len(columns)] for pair in zip(found, loads, strict=True)], STATES)


def _loads(saved: list[SavedCluster]) -> list[ClusterLoad | None]:
    """The load of each cluster; None for a block that can't be read."""
    from slurm_ray_flow.blocks.clusters import find_cluster
    from slurm_ray_flow.blocks.ssh.authentication import asking_nobody
    from slurm_ray_flow.tasks.cluster_report import loads

    blocks: dict[str, Any] = {}
    for one in saved:
        try:
            with asking_nobody():
                blocks[one.slug] = find_cluster("local" if one.name == "local" else one.slug)
        except (SlurmRayFlowError, ValueError):  # an older or newer version saved it; or somebody else has changed it
            continue
    answers = dict(zip(blocks, loads(list(blocks.values())), strict=True))
    return [answers.get(one.slug) for one in saved]


def _values(saved: SavedCluster, load: ClusterLoad | None) -> dict[str, Any]:
    return {**dataclasses.asdict(saved), "load": dataclasses.asdict(load) if load else None}


def _row(saved: SavedCluster, load: ClusterLoad | None) -> list[str]:
    kind = KINDS.get(saved.kind, saved.kind)
    if load is None:
        return [saved.name, kind, saved.host, "not usable", "", ""]
    if load.state != "up":
        return [saved.name, kind, saved.host, load.state, load.why, ""]
    return [saved.name, kind, saved.host, load.state, load_text(load), queue_text(load)]


def load_text(load: ClusterLoad) -> str:
    """The load of a cluster in words."""
    if load.cpus is None or load.busy is None:
        return ""
    if not load.partition:
        return f"{load.busy:.1f} of {load.cpus} CPUs busy"
    gpus = f", {load.gpus_taken} of {load.gpus} GPUs" if load.gpus else ""
    return f"{load.partition}: {load.busy:.0f} of {load.cpus} CPUs taken{gpus}"


def queue_text(load: ClusterLoad) -> str:
    """The holders and the queue of a cluster in words."""
    if load.partition:
        return f"yours: {load.running} running, {load.waiting} waiting"
    if load.slots is None:
        return "no lock"
    waiting = f", {load.waiting} waiting" if load.waiting else ""
    if load.slots == 1 and load.holders:
        holder = load.holders[0]
        return f"{holder.get('user') or 'somebody'} since {clock(holder.get('since'))}{waiting}"
    return ("free" if load.slots == 1 else f"{load.slots_free} of {load.slots} slots free") + waiting


def _partitions(name: str, json: bool) -> None:
    cluster = cluster_named(name)
    scheduler = cluster.scheduler
    if scheduler is None or scheduler.dialect.site is None:
        raise OptionError(f"{name!r} has no partitions", advice=f"`srf check {name}` says what it has")
    found, tells = scheduler.site(), scheduler.dialect.site
    if json:
        print_json({"name": name, **tells.values(found)})
    elif rows := tells.rows(found):
        print_table(tells.columns, rows)
    else:
        print_text(f"{name} shows no partitions.")


def forget(name: Annotated[str, A_CLUSTER], *, force: Annotated[bool, Switch] = False) -> None:
    """Remove a saved cluster, and the connection that was saved with it.

    Nothing happens on the cluster itself: `srf clean NAME` before that removes what lies there.

    Examples:
        srf forget desi

    Args:
        name: The cluster's name.
        force: Also while runs there have not ended; they go on, and are not found from here any more.
    """
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.blocks.clusters import forget_cluster

    alive = [record.run_id[:8] for record in store.records() if record.cluster == name and not record.ended]
    if alive and not force:
        raise OptionError(
            f"{len(alive)} runs on {name!r} have not ended, as far as home knows: {', '.join(alive[:5])}",
            advice="`srf attach RUN` fetches their values, `srf cancel RUN` ends them; --force forgets it anyway",
        )
    use_server()
    forget_cluster(name)
    print_text(f"{name} is forgotten.")
