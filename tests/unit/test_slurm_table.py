"""A site as people and scripts see it."""

from __future__ import annotations

import json

from slurm_ray_flow.core.slurm.site import Site, parse_site, partition_table
from slurm_recorded import REAL, recorded


def site(version: str = REAL, nodes: str = "site-nodes") -> Site:
    return parse_site(recorded("site-partitions", version), recorded(nodes, version), recorded("site-version", version))


def lines_of(found: Site) -> list[dict[str, str]]:
    table = partition_table(found)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_a_line_for_each_partition() -> None:
    lines = lines_of(site(nodes="site-nodes-busy"))
    assert lines[0] == {
        "PARTITION": "cpu",
        "STATE": "up",
        "LONGEST": "1 h 0 min",
        "NODES": "2",
        "CPUS": "4",
        "MEMORY": "3.9 GiB",
        "GPUS": "2 fake",
        "NOW": "50 % of CPUs taken, 1 of 2 GPUs taken, 1 draining, 1 mixed",
        "NOTES": "default",
    }
    notes = {line["PARTITION"]: (line["STATE"], line["NODES"], line["NOTES"]) for line in lines}
    assert notes["short"] == ("up", "2, at most 1 a job", "")
    assert notes["closed"] == ("down", "2", "")
    assert notes["spare"] == ("up", "2", "jobs may be preempted")


def test_who_may_use_it_and_what_has_no_limit() -> None:
    lines = {row["PARTITION"]: row for row in lines_of(site("composed/20.11"))}
    assert list(lines) == ["batch", "long"]  # the third one is hidden
    assert (lines["long"]["NOTES"], lines["long"]["LONGEST"]) == ("groups chemistry, physics", "7 d 0 h")
    lines = {row["PARTITION"]: row for row in lines_of(site("composed/24.05"))}
    assert (lines["resv"]["LONGEST"], lines["resv"]["NOTES"]) == ("no limit", "reservation only")
    assert lines["root"]["CPUS"] == ""  # no nodes of it are shown


def test_for_scripts_no_limit_is_null_and_all_is_json() -> None:
    values = json.loads(json.dumps(partition_table(site(nodes="site-nodes-busy")).values, allow_nan=False))
    cpu = values["partitions"][0]
    assert (values["slurm"], cpu["max_nodes"], cpu["max_time"]) == ("22.05.8", None, 3600)
    assert (cpu["cpus_taken"], cpu["cpus_free"], cpu["gpus_taken"], cpu["gpus"]) == (2, 2, 1, 2)
