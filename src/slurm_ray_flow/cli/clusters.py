"""`srf clusters`, `srf check`, `srf forget`: saved clusters, their load, their findings, their removal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.names import A_CLUSTER, KINDS, cluster_named, use_server
from slurm_ray_flow.cli.output import STATES, Json, Switch, print_json, print_table, print_text, tell
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError
from slurm_ray_flow.core.lock import clock

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.clusters import SavedCluster
    from slurm_ray_flow.core.cluster_report import CheckResult, ClusterReport, Load


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
    from slurm_ray_flow.blocks.server import ensure_server

    ensure_server(tell)
    saved = [SavedCluster("local", "local-machine", "this machine"), *saved_clusters()]
    reports: list[ClusterReport | None] = [None] * len(saved) if offline else _reports(saved)
    pairs = list(zip(saved, reports, strict=True))
    if json:
        print_json([{**dataclasses.asdict(one), "load": report and report.to_json()} for one, report in pairs])
        return
    columns = COLUMNS[:3] if offline else COLUMNS
    print_table(columns, [_row(*pair)[: len(columns)] for pair in pairs], STATES)


def _reports(saved: list[SavedCluster]) -> list[ClusterReport | None]:
    """The report of each cluster; None for a cluster whose block can't be read."""
    from slurm_ray_flow.blocks.clusters import find_cluster
    from slurm_ray_flow.blocks.ssh.authentication import asking_nobody
    from slurm_ray_flow.tasks.cluster_report import reports

    blocks: dict[str, Any] = {}
    for cluster in saved:
        try:
            with asking_nobody():
                blocks[cluster.slug] = find_cluster("local" if cluster.name == "local" else cluster.slug)
        except (SlurmRayFlowError, ValueError):  # another version saved it, or somebody else changed it
            continue
    answers = dict(zip(blocks, reports(list(blocks.values())), strict=True))
    return [answers.get(cluster.slug) for cluster in saved]


def _row(saved: SavedCluster, report: ClusterReport | None) -> list[str]:
    cells = [saved.name, KINDS.get(saved.kind, saved.kind), saved.host]
    if report is None:
        return [*cells, "not usable", "", ""]
    if report.error:
        return [*cells, report.state, report.why, ""]
    return [*cells, report.state, _load_text(report.load), _queue_text(report)]


def _load_text(load: Load | None) -> str:
    if load is None or load.cpus is None or load.busy is None:
        return ""
    if not load.partition:
        return f"{load.busy:.1f} of {load.cpus} CPUs busy"
    gpus = f", {load.gpus_taken} of {load.gpus} GPUs" if load.gpus else ""
    return f"{load.partition}: {load.busy:.0f} of {load.cpus} CPUs taken{gpus}"


def _queue_text(report: ClusterReport) -> str:
    jobs, lock = report.jobs, report.lock
    if jobs and not lock:
        return f"yours: {jobs.running} running, {jobs.waiting} waiting"
    if lock is None:
        return "no lock"
    waiting = f", {len(lock.waiting)} waiting" if lock.waiting else ""
    if lock.slots == 1 and lock.holders:
        return f"{lock.holders[0].user} since {clock(lock.holders[0].since)}{waiting}"
    return ("free" if lock.slots == 1 else f"{lock.free} of {lock.slots} slots free") + waiting


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
