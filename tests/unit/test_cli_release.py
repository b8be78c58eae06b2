"""Which warm allocations a word of the command line means."""

from types import SimpleNamespace
from typing import Any

import pytest

from slurm_ray_flow import UnknownRunError
from slurm_ray_flow.cli.release import allocations_on, matching_allocations


def kept(allocation: str, cluster: str) -> Any:
    return SimpleNamespace(allocation=allocation), SimpleNamespace(label=cluster), "f"


THERE = [kept("3f2a11", "desi"), kept("3f2b22", "desi"), kept("77aa33", "curnagl")]


@pytest.mark.parametrize(("which", "found"), [("desi", [0, 1]), ("3f2a", [0]), ("7", [2]), ("curnagl", [2])])
def test_a_cluster_or_the_start_of_one_id_is_meant(which: str, found: list[int]) -> None:
    assert matching_allocations(which, THERE) == [THERE[number] for number in found]


@pytest.mark.parametrize("which", ["3f2", "zzz", ""])
def test_what_several_share_or_none_has_is_refused(which: str) -> None:
    with pytest.raises(UnknownRunError, match=r"3f2a11.*3f2b22" if which == "3f2" else "no warm allocation"):
        matching_allocations(which, THERE)


def warm(run_id: str, cluster: str) -> Any:
    return SimpleNamespace(run_id=run_id, cluster=cluster)


RUNS = [warm("3f2a11", "desi"), warm("99bb44", "desi"), warm("77aa33", "curnagl")]


@pytest.mark.parametrize(
    ("which", "asked"),
    [("curnagl", [2]), ("3f2", [0, 1]), ("7", [2]), ("", [0, 1, 2]), ("of-another-machine", [0, 1, 2])],
)
def test_only_the_cluster_that_is_meant_is_asked(which: str, asked: list[int]) -> None:
    assert allocations_on(which, RUNS) == [RUNS[number] for number in asked]
