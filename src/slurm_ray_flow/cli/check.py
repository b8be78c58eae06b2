"""`srf check`: can a cluster be used, and what is to be done if not."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

from slurm_ray_flow.cli.offered import A_CLUSTER
from slurm_ray_flow.cli.output import STATES, Json, print_json, print_table, print_text
from slurm_ray_flow.cli.saved import cluster_named

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.core.findings import Finding


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
    """Look at a cluster and write what was found; gives whether it can be used."""
    from slurm_ray_flow.tasks.check import check as findings_of

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


def _rows(findings: list[Finding]) -> list[list[str]]:
    """A line for each, and one for all of which nothing is known."""
    known = [one for one in findings if one.state != "not known"]
    rows = [[one.name, one.state, one.found, one.advice] for one in known]
    if len(known) < len(findings):
        rest = next(one for one in findings if one.state == "not known")
        rows.append(["all else" if known else "all", rest.state, rest.found, rest.advice])
    return rows
