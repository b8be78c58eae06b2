"""What is prepared for pilots, as a file that another process reads."""

import json

import pytest

from slurm_ray_flow.core.cluster_facts import Container
from slurm_ray_flow.tasks.install_environment import Environment
from slurm_ray_flow.tasks.prepared import Prepared
from slurm_ray_flow.tasks.scan_imports import ScannedCode
from slurm_ray_flow.tasks.sync_files import Snapshot

PREPARED = Prepared(
    ScannedCode("ab" * 32, "/home/ann/project", 3, 2, False, "/home/ann/project/train.py"),
    Snapshot("cd" * 32, "/r/snapshots/x/y", ("work/project",), "work/project", "snapshots/x/y.list", (("/home", "w"),)),
    Environment("/r/bin/python", True, "e" * 20, "", Container("/images/a.sif", ("--nv",), "python3", "1-2")),
    {"image": "/images/a.sif", "wants": {"python": "3.11"}},
    ("train.py", "--fast", "\udcff"),
    5000,
)
BARE = Prepared(
    ScannedCode("", "", 0, 0, True), Snapshot("", "/s", (), "work", "", ()), Environment("p", False, ""), None, (), 1
)


@pytest.mark.parametrize("prepared", [PREPARED, BARE])
def test_it_is_read_as_it_was_written(prepared):
    assert Prepared.from_json(prepared.to_json()) == prepared


def test_only_what_is_there_is_marked_as_used():
    assert PREPARED.listings == ["snapshots/x/y.list", f"environments/{'e' * 20}/whole.json"]
    assert BARE.listings == []


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"code": 3}, {"code": {}}, {"snapshot": []}, {"environment": None}, {"argv": None},
        {"recursion_limit": "many"},
    ],
)  # fmt: skip
def test_what_is_damaged_or_later_is_refused(change):
    with pytest.raises(ValueError, match=r"prepared|record|literal"):
        Prepared.from_json(json.dumps({**json.loads(PREPARED.to_json()), **change}))
