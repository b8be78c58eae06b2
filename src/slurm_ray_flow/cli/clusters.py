"""`srf clusters`, `srf check`, `srf forget`: saved clusters, their load, their findings, their removal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.cluster_views import Shown, View, show, use_of_clusters
from slurm_ray_flow.cli.names import A_CLUSTER, cluster_named, use_server
from slurm_ray_flow.cli.output import STATES, Json, Switch, print_json, print_table, print_text, tell
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.clusters import SavedCluster
    from slurm_ray_flow.core.cluster_report import CheckResult, ClusterReport


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
    from slurm_ray_flow.tasks.cluster_report import report

    cluster_report = report(cluster_named(cluster), "findings")
    if json:
        print_json(cluster_report.to_json()["findings"])
    else:
        show_findings(cluster_report)
    if cluster_report.down:
        sys.exit(1)


def show_findings(report: ClusterReport) -> None:
    """Write the findings as a table, and whether the cluster can be used."""
    print_table(["WHAT", "STATE", "FOUND", "WHAT TO DO"], _finding_rows(report.findings or ()), STATES)
    failed = ", ".join(finding.name for finding in report.failed)
    print_text(f"{report.cluster} can't be used yet: {failed}" if failed else f"{report.cluster} can be used")


def _finding_rows(findings: Sequence[CheckResult]) -> list[list[str]]:
    """A row for each finding; one row for all findings that are not known."""
    known = [one for one in findings if one.state != "not known"]
    rows = [[one.name, one.state, one.found, one.advice] for one in known]
    if len(known) < len(findings):
        unknown = next(one for one in findings if one.state == "not known")
        rows.append(["all else" if known else "all", unknown.state, unknown.found, unknown.advice])
    return rows


def clusters(
    name: Annotated[str | None, A_CLUSTER] = None,
    *,
    infos: Annotated[bool, Switch] = False,
    more_infos: Annotated[bool, Switch] = False,
    usage: Annotated[bool, Switch] = False,
    bars: Annotated[bool, Switch] = False,
    drain: Annotated[bool, Switch] = False,
    resume: Annotated[bool, Switch] = False,
    reason: Annotated[str, Parameter(show_default=False)] = "",
    offline: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Show all saved clusters with their load and queue, or the partitions of one; drain one for campaigns.

    They are asked at once, for ten seconds at most; one that does not answer is shown as away. Of a Slurm cluster the
    load is that of the partition which jobs go to, and the queue has your own jobs. Nobody is asked for a password.

    On a drained cluster no campaign gets a pilot: those that run end after the items that they have in hand, and other
    clusters do the rest. Launches of functions go on there.

    Examples:
        srf clusters

        srf clusters curnagl --more-infos

        srf clusters curnagl --drain --reason "new disks on Friday"

    Args:
        name: Only this cluster. Without another option each partition's limits, its nodes, and how much is taken.
        infos: Also cores, campaigns and pilots.
        more_infos: All that is known: partitions, limits, disk, health, and the campaigns there with their state.
        usage: Who uses how much in campaigns: core time, pilots, items, and the virtual time of fair shares.
        bars: A bar for each cluster, of the cores in use.
        drain: Give campaigns no more pilots on this cluster.
        resume: Have campaigns use a drained cluster again.
        reason: Why it is drained, for those who wait.
        offline: Ask none of them; show what is saved.
    """
    chosen = {"list": False, "infos": infos, "more": more_infos, "usage": usage, "bars": bars}
    views: list[Any] = [view for view, wanted in chosen.items() if wanted]
    if len(views) + drain + resume > 1 or (reason and not drain) or (views and offline):
        raise OptionError("these options do not go together", advice="choose one of them; --reason goes with --drain")
    if drain or resume:
        _change_drain(name, drain, reason, json)
    elif name is not None and not views and not offline:
        _partitions(name, json)
    else:
        _show(name, views[0] if views else "list", offline, json)


def _show(name: str | None, view: View, offline: bool, json: bool) -> None:
    from slurm_ray_flow.blocks.clusters import SavedCluster, saved_clusters
    from slurm_ray_flow.blocks.server import ensure_server
    from slurm_ray_flow.core.artifacts import short_name

    ensure_server(tell)
    saved = [SavedCluster("local", "local-machine", "this machine"), *saved_clusters()]
    if name is not None:
        cluster_named(name, to_look=True)  # which says what is near a name that there is not
        saved = [cluster for cluster in saved if name in (cluster.name, cluster.slug)]
    reports: list[ClusterReport | None] = [None] * len(saved) if offline else _reports(saved, view)
    use = use_of_clusters(start=view not in {"list", "bars"})
    shown = [
        Shown(cluster, report, use.get(short_name(cluster.name), {}))
        for cluster, report in zip(saved, reports, strict=True)
    ]
    if json:
        print_json([cluster.to_json() for cluster in shown])
    else:
        show(shown, view, offline)


def _change_drain(name: str | None, drain: bool, reason: str, json: bool) -> None:
    from slurm_ray_flow.cli.grid import grid_client

    if name is None:
        raise OptionError("which cluster?", advice=f"write srf clusters NAME {'--drain' if drain else '--resume'}")
    cluster_named(name, to_look=True)
    client = grid_client()
    if drain:
        client.drain(name, reason)
        text = f"{name} is drained: no campaign gets a pilot there, and those that run end after the items in hand."
    else:
        was_drained = client.resume_cluster(name)
        text = f"Campaigns use {name} again." if was_drained else f"{name} was not drained."
    if json:
        print_json({"name": name, "drained": drain, "reason": reason})
    else:
        print_text(text)


def _reports(saved: list[SavedCluster], view: View) -> list[ClusterReport | None]:
    """The report of each cluster; None for a cluster whose block can't be read."""
    from slurm_ray_flow.blocks.clusters import find_cluster
    from slurm_ray_flow.blocks.ssh.authentication import asking_nobody
    from slurm_ray_flow.tasks.cluster_report import MORE_SECONDS, SECONDS, Part, reports

    blocks: dict[str, Any] = {}
    for cluster in saved:
        try:
            with asking_nobody():
                blocks[cluster.slug] = find_cluster("local" if cluster.name == "local" else cluster.slug)
        except (SlurmRayFlowError, ValueError):  # another version saved it, or somebody else changed it
            continue
    more = view == "more"
    parts: tuple[Part, ...] = ("partitions", "findings") if more else ()
    found = reports(list(blocks.values()), MORE_SECONDS if more else SECONDS, parts)
    answers = dict(zip(blocks, found, strict=True))
    return [answers.get(cluster.slug) for cluster in saved]


def _partitions(name: str, json: bool) -> None:
    from slurm_ray_flow.tasks.cluster_report import report

    partitions = report(cluster_named(name), "partitions").answered().partitions
    if partitions is None:
        raise OptionError(f"{name!r} has no partitions", advice=f"`srf check {name}` says what it has")
    if json:
        print_json({"name": name, **partitions.values})
    elif partitions.rows:
        print_table(partitions.columns, partitions.rows)
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
