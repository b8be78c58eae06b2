"""What `srf check` says of a Slurm site."""

from __future__ import annotations

from typing import Any

import pytest

from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm.site import Site, parse_site, slurm_finding
from slurm_recorded import REAL, recorded


def site(version: str = REAL) -> Site:
    names = ("site-partitions", "site-nodes", "site-version")
    return parse_site(*(recorded(name, version) for name in names))


@pytest.mark.parametrize(
    ("wanted", "state", "found", "advice"),
    [
        ({}, "ok", "22.05.8, 5 partitions; jobs go to cpu, the default", ""),
        ({"partition": "gpu"}, "ok", "22.05.8, 5 partitions; jobs go to gpu", ""),
        ({"partition": "gpuu"}, "failed", "there is no partition 'gpuu'", "did you mean partition='gpu'?"),
        ({"partition": "closed"}, "failed", "starts no jobs now", "partition='cpu'"),
        ({"extra": ("--array=1-2",)}, "failed", "'--array=1-2' can't be given", "leave it out"),
    ],
)
def test_a_site_is_judged_by_what_the_block_asks_for(
    wanted: dict[str, Any], state: str, found: str, advice: str
) -> None:
    finding = slurm_finding(site(), JobRequest("check", **wanted))
    assert (finding.name, finding.state) == ("slurm", state)
    assert found in finding.found
    assert advice in finding.advice


def test_hidden_partitions_do_not_count() -> None:
    assert slurm_finding(site("composed/20.11"), JobRequest("check")).found.startswith("20.11.9, 2 partitions")


def test_a_site_that_shows_nothing_is_a_warning() -> None:
    assert slurm_finding(Site({}), JobRequest("check")).state == "warning"
    assert (
        "where the site puts them" in slurm_finding(Site({"cpu": site().partitions["gpu"]}), JobRequest("check")).found
    )
