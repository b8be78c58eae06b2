"""The tables of `srf clusters`: infos, more infos, usage, bars; and what campaigns have of clusters."""

from __future__ import annotations

import dataclasses
import getpass
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from slurm_ray_flow.cli.names import KINDS
from slurm_ray_flow.cli.output import STATES, print_table, print_text, tell
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.lock import clock
from slurm_ray_flow.core.quantities import format_duration

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.clusters import SavedCluster
    from slurm_ray_flow.core.cluster_report import ClusterReport, Load

View = Literal["list", "infos", "more", "usage", "bars"]
BAR = 30
"""The letters of a whole bar."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A cluster with all that was asked about it.

    Attributes:
        saved: its name, kind and host.
        report: what it has said; None where it was not asked, or where its block can't be read.
        use: what campaigns have of it (`ClusterUse`); {} for nothing.
    """

    saved: SavedCluster
    report: ClusterReport | None
    use: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it for scripts."""
        report = self.report
        load = report and {**report.to_json(), "partitions": report.partitions and report.partitions.values}
        return {**dataclasses.asdict(self.saved), "load": load, "grid": self.use or None}

    @property
    def state(self) -> str:
        """Its state, and whether it is drained."""
        state = self.report.state if self.report else "not usable"
        return f"{state}, drained" if self.use.get("drain") else state

    @property
    def why(self) -> str:
        """The reason that it does not answer; "" where it does."""
        return self.report.why if self.report else "its block can't be read: save it anew with `srf init`"

    def total(self, field: str) -> int:
        """How many there are of all users: "running" or "queued" pilots, or "items" at pilots."""
        return sum(use[field] for use in self.use.get("users", {}).values())


def use_of_clusters(start: bool) -> dict[str, dict[str, Any]]:
    """What campaigns have of each cluster, by its name; {} where this home has had no campaign.

    Args:
        start: whether to start the grid's engine where it does not run.
    """
    from slurm_ray_flow.blocks.grid_engine import EngineFiles, read_engine_state

    if read_engine_state() is None and not (start and EngineFiles().token_file.exists()):
        return {}
    from slurm_ray_flow.cli.grid import grid_client

    try:
        return {cluster["name"]: cluster for cluster in grid_client().clusters()}
    except SlurmRayFlowError as error:  # the clusters themselves can be shown all the same
        tell(f"What campaigns have of the clusters is not known: {error.what}")
        return {}


def show(clusters: Sequence[Shown], view: View, offline: bool) -> None:
    """Write the clusters for people."""
    if view == "usage":
        print_table(["CLUSTER", "USER", "CORE TIME", "PILOTS", "ITEMS", "SHARE"], _usage_rows(clusters))
    elif view == "bars":
        _print_bars(clusters)
    elif view == "more":
        for number, cluster in enumerate(clusters):
            print_text("") if number else None
            print_table([cluster.saved.name, KINDS.get(cluster.saved.kind, cluster.saved.kind)], _all_rows(cluster))
    elif view == "infos":
        columns = ["NAME", "KIND", "HOST", "STATE", "CORES", "LOAD", "QUEUE", "CAMPAIGNS", "PILOTS"]
        print_table(columns, [_infos_row(cluster) for cluster in clusters], STATES)
    else:
        columns = ["NAME", "KIND", "HOST", "STATE", "LOAD", "QUEUE"]
        drained = any(cluster.use.get("drain") for cluster in clusters)
        count = len(columns) if not offline else 4 if drained else 3
        rows = [_row(cluster, offline)[:count] for cluster in clusters]
        print_table(columns[:count], rows, STATES)


def _row(cluster: Shown, offline: bool = False) -> list[str]:
    saved, report = cluster.saved, cluster.report
    cells = [saved.name, KINDS.get(saved.kind, saved.kind), saved.host]
    if offline:
        return [*cells, "drained" if cluster.use.get("drain") else ""]
    if report is None or report.error:
        return [*cells, cluster.state, report.why if report else "", ""]
    return [*cells, cluster.state, _load_text(report.load), queue_text(report)]


def _infos_row(cluster: Shown) -> list[str]:
    *cells, load, queue = _row(cluster)
    cores = cluster.report.load.cpus if cluster.report and cluster.report.load else None
    pilots = f"{cluster.total('running')} running, {cluster.total('queued')} waiting"
    count = len(cluster.use.get("campaigns", ()))
    return [*cells, "" if cores is None else str(cores), load, queue, str(count), pilots if cluster.use else ""]


def _all_rows(cluster: Shown) -> list[list[str]]:
    """All that is known of a cluster, a row for each matter."""
    report, use = cluster.report, cluster.use
    rows = [["host", cluster.saved.host], ["state", ": ".join(filter(None, [cluster.state, cluster.why]))]]
    if drain := use.get("drain"):
        rows.append(["drained", f"by {drain['user']} since {clock(drain['since'])}" + _because(drain["reason"])])
    if report and not report.error:
        rows += [["load", _load_text(report.load)], ["queue", queue_text(report)]]
        rows += [[finding.name, f"{finding.state}: {finding.found}"] for finding in report.findings or ()]
        for row in report.partitions.rows if report.partitions else ():
            columns = report.partitions.columns if report.partitions else ()
            said = [f"{name.lower()} {cell}" for name, cell in zip(columns[1:], row[1:], strict=False) if cell]
            rows.append([f"partition {row[0]}", "; ".join(said)])
    rows += [[f"campaign {one['id'][:8]}", _campaign_text(one)] for one in use.get("campaigns", ())]
    return rows


def _campaign_text(campaign: dict[str, Any]) -> str:
    use = campaign["use"]
    state = campaign["here"] if campaign["state"] == "active" else f"{campaign['state']}, {campaign['here']}"
    pilots = f"{use['running']} pilots run, {use['queued']} wait; {use['items']} items there"
    who = f"{campaign['name']} of {campaign['user']}"
    return f"{who}: {state}{_because(campaign['reason'])}; {pilots}, {campaign['waiting']} wait for a pilot"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _usage_rows(clusters: Sequence[Shown]) -> list[list[str]]:
    """A row for each user of a cluster, and one with what the cluster itself says."""
    rows, me = [], getpass.getuser()
    for cluster in clusters:
        shares = cluster.use.get("shares", {})
        for user, use in sorted(cluster.use.get("users", {}).items(), key=lambda pair: -pair[1]["core_seconds"]):
            cores = format_duration(use["core_seconds"]) if use["core_seconds"] >= 1 else "0s"
            pilots = f"{use['running']} running, {use['queued']} waiting"
            share = f"{shares[user]:.0f}" if user in shares else ""
            name = f"{user} (you)" if user == me else user
            rows.append([cluster.saved.name, name, cores, pilots, str(use["items"]), share])
        report = cluster.report
        answers = report is not None and not report.error
        parts = [_load_text(report.load), queue_text(report)] if report and answers else [cluster.state, cluster.why]
        rows.append([cluster.saved.name, "the cluster itself", "", "; ".join(filter(None, parts)), "", ""])
    return rows


def _print_bars(clusters: Sequence[Shown]) -> None:
    """A bar for each cluster, of what is in use and what is free."""
    in_terminal = sys.stdout.isatty()
    rows = []
    for cluster in clusters:
        load = cluster.report.load if cluster.report and not cluster.report.error else None
        if load is None or not load.cpus or load.busy is None:
            rows.append([cluster.saved.name, "", ": ".join(filter(None, [cluster.state, cluster.why]))])
        else:
            used = round(BAR * min(load.busy / load.cpus, 1.0))
            full, empty = ("█", "░") if in_terminal else ("#", "-")
            text = _load_text(load) + (" (drained)" if cluster.use.get("drain") else "")
            rows.append([cluster.saved.name, full * used + empty * (BAR - used), text])
    print_table(["NAME", "CORES IN USE", "LOAD"], rows)


def _load_text(load: Load | None) -> str:
    if load is None or load.cpus is None or load.busy is None:
        return ""
    if not load.partition:
        return f"{load.busy:.1f} of {load.cpus} CPUs busy"
    gpus = f", {load.gpus_taken} of {load.gpus} GPUs" if load.gpus else ""
    return f"{load.partition}: {load.busy:.0f} of {load.cpus} CPUs taken{gpus}"


def queue_text(report: ClusterReport) -> str:
    """Who holds a shared server, or how many jobs there are of one's own."""
    jobs, lock = report.jobs, report.lock
    if jobs and not lock:
        return f"yours: {jobs.running} running, {jobs.waiting} waiting"
    if lock is None:
        return "no lock"
    waiting = f", {len(lock.waiting)} waiting" if lock.waiting else ""
    if lock.slots == 1 and lock.holders:
        return f"{lock.holders[0].user} since {clock(lock.holders[0].since)}{waiting}"
    return ("free" if lock.slots == 1 else f"{lock.free} of {lock.slots} slots free") + waiting
