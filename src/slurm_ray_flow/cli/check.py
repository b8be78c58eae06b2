"""`srf check`: can a cluster be used, and what is to be done if not."""

from __future__ import annotations

import dataclasses
import sys

from slurm_ray_flow.cli.clusters import cluster_named
from slurm_ray_flow.cli.output import Json, print_json, print_table


def check(cluster: str = "local", *, json: Json = False) -> None:
    """Look whether a cluster can be used, and say what to do about each finding. Exits with 1 when something failed.

    Args:
        cluster: Its name.
    """
    found = cluster_named(cluster)
    from slurm_ray_flow.tasks.check import check as findings_of

    findings = findings_of(found)
    if json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        rows = [[one.name, one.state, one.found, one.advice] for one in findings]
        print_table(["WHAT", "STATE", "FOUND", "WHAT TO DO"], rows)
    if any(finding.state == "failed" for finding in findings):
        sys.exit(1)
