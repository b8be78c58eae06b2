"""What `srf check` says of a Slurm site. Pure."""

from __future__ import annotations

from slurm_ray_flow.core.errors import OptionError, Rejected
from slurm_ray_flow.core.findings import Finding
from slurm_ray_flow.core.slurm.request import Request, sbatch_arguments
from slurm_ray_flow.core.slurm.site import Site, check

NAME = "slurm"


def slurm_finding(site: Site, request: Request) -> Finding:
    """Whether the site would take a job that asks for nothing but what the cluster's block says.

    Args:
        site: what it has.
        request: such a job.
    """
    if not site.partitions:
        return Finding(NAME, "warning", "it shows no partition", "`sinfo` there says whether you may use any")
    try:
        sbatch_arguments(request)
        check(request, site)
    except (OptionError, Rejected) as error:
        return Finding(NAME, "failed", error.what, error.advice)
    shown = sum(not partition.hidden for partition in site.partitions.values())
    partitions = "1 partition" if shown == 1 else f"{shown} partitions"
    return Finding(
        NAME, "ok", f"{site.version or 'of unknown version'}, {partitions}; jobs go to {_place(site, request)}"
    )


def _place(site: Site, request: Request) -> str:
    if request.partition:
        return request.partition
    return f"{site.default.name}, the default" if site.default else "where the site puts them"
