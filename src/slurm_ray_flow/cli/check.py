"""`srf check`: can a cluster be used, and what is to be done if not."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from slurm_ray_flow.cli.clusters import cluster_named
from slurm_ray_flow.cli.output import Json, print_json, print_table

if TYPE_CHECKING:
    from slurm_ray_flow.core.findings import Finding


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
        print_table(["WHAT", "STATE", "FOUND", "WHAT TO DO"], _rows(findings))
    if any(finding.state == "failed" for finding in findings):
        sys.exit(1)


def _rows(findings: list[Finding]) -> list[list[str]]:
    """A line for each, and one for all of which nothing is known."""
    known = [one for one in findings if one.state != "not known"]
    rows = [[one.name, one.state, one.found, one.advice] for one in known]
    if len(known) < len(findings):
        rest = next(one for one in findings if one.state == "not known")
        rows.append(["all else" if known else "all", rest.state, rest.found, rest.advice])
    return rows
