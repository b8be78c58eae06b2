"""`srf clean`: the removal of unused files from a cluster."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slurm_ray_flow.cli.names import A_CLUSTER, cluster_named, use_server
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_table, print_text
from slurm_ray_flow.core.clean_up import CleanUpReport, report_rows

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.core.run import RunRecord


def clean(
    cluster: Annotated[str, A_CLUSTER] = "local",
    *,
    dry_run: Annotated[bool, Switch] = False,
    older_than: str | None = None,
    run: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> None:
    """Remove from a cluster what nobody has used for long.

    Runs, snapshots, environments, old tools and caches go. What a run needs that lives or waits stays, what is younger
    than a day, and runs of functions with keep=True.

    Examples:
        srf clean desi --dry-run

        srf clean desi --older-than 7d

        srf clean --run 3f2a

    Args:
        cluster: Its name.
        dry_run: Remove nothing; say what would go.
        older_than: How long a thing stays that nobody uses, such as 7d; else as the cluster's block says.
        run: Remove this run alone, however young it is, also one that was to be kept: its id, or the start of it.
    """
    from slurm_ray_flow.blocks.store import find_record

    record = find_record(run) if run else None
    target = _cluster_of(record) if record else cluster_named(cluster)
    from slurm_ray_flow.tasks.clean_up import cleaned_up

    report = cleaned_up(target, older_than, dry_run, record.run_id if record else "")
    if json:
        print_json(report.to_json())
    else:
        _show(report)


def _cluster_of(record: RunRecord) -> Cluster:
    from slurm_ray_flow.blocks.clusters import cluster_of

    use_server()
    return cluster_of(record)


def _show(report: CleanUpReport) -> None:
    table = report_rows(report, time.time())
    names = ["kind", "what", "unused for", "size", "files"]
    removed = [[row[name] for name in names] for row in table if "size" in row]
    if removed:
        print_table([name.upper() for name in names], removed)
    for text in report.stayed:
        sys.stderr.write(f"{text}\n")
    print_text(report.total)
