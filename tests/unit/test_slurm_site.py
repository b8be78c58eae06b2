"""What a site has, of several versions of Slurm, and whether a request fits to it."""

from __future__ import annotations

from typing import Any

import pytest

from slurm_ray_flow.core.errors import Rejected
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm.partitions import Partition, gpu_count, gpu_types
from slurm_ray_flow.core.slurm.site import Site, check, parse_site, would_do
from slurm_recorded import REAL, REALS, VERSIONS, recorded

GIB = 1024**3


def site(version: str = REAL, nodes: str = "site-nodes", groups: str = "") -> Site:
    return parse_site(
        recorded("site-partitions", version), recorded(nodes, version), recorded("site-version", version), groups
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(version: str) -> None:
    found = site(version)
    assert found.version.startswith(version.rpartition("/")[2])
    assert found.default is not None
    assert found.default.kinds


@pytest.mark.parametrize("version", REALS)
def test_the_real_ones(version: str) -> None:
    found = site(version).partitions
    limits = {name: (one.state, one.max_time, one.default_time, one.max_nodes) for name, one in found.items()}
    endless = float("inf")
    assert limits == {
        "cpu": ("UP", 3600, 600, endless),
        "short": ("UP", 120, 60, 1),
        "gpu": ("UP", 3600, 600, endless),
        "closed": ("DOWN", 3600, 600, endless),
        "spare": ("UP", 3600, 600, endless),
    }
    assert [name for name, one in found.items() if one.preemptible] == ["spare"]
    cpu = found["cpu"]
    assert (cpu.nodes, cpu.cpus_per_node, cpu.memory_per_node, cpu.gpus_per_node) == (2, 4, 4000 * 1024**2, 2)
    assert (cpu.node_states, cpu.load) == ({"idle": 2}, 0.0)


@pytest.mark.parametrize("version", REALS)
def test_load_and_states_when_it_is_busy(version: str) -> None:
    cpu = site(version, nodes="site-nodes-busy").partitions["cpu"]
    assert cpu.node_states == {"draining": 1, "mixed": 1}
    assert (cpu.load, sum(kind.gpus_used for kind in cpu.kinds)) == (0.5, 2)
    cpu = site(version, nodes="site-nodes-down").partitions["cpu"]
    assert (cpu.nodes, cpu.node_states["down"]) == (2, 1)
    assert [kind.away for kind in cpu.kinds] == [kind.state == "down" for kind in cpu.kinds]


# What a reader of the composed answers would say: nodes, CPUs, GiB and GPUs of the largest node, states.
COMPOSED: dict[str, tuple[str, tuple[int, int, int, int], dict[str, int]]] = {
    "composed/20.11": ("batch", (16, 48, 187, 0), {"allocated": 12, "idle": 3, "drained": 1}),
    "composed/21.08": ("main", (10, 32, 125, 3), {"planned": 2, "mixed": 8}),
    "composed/23.02": ("cpu", (96, 48, 976, 0), {"allocated": 90, "mixed": 4, "idle": 2}),
    "composed/23.11": ("gpu", (22, 128, 976, 30), {"mixed": 20, "inval": 2}),
    "composed/24.05": ("standard", (508, 256, 750, 0), {"reserved": 100, "maint": 8, "allocated": 400}),
    "composed/25.05": ("shared-gpu", (3, 64, 500, 8), {"mixed": 3}),
}


@pytest.mark.parametrize("version", COMPOSED)
def test_the_composed_ones(version: str) -> None:
    name, sizes, states = COMPOSED[version]
    found = site(version).partitions[name]
    assert (found.nodes, found.cpus_per_node, found.memory_per_node // GIB, found.gpus_per_node) == sizes
    assert found.node_states == states


def test_who_may_use_a_partition() -> None:
    old, new = site("composed/20.11").partitions, site("composed/24.05").partitions
    assert old["long"].groups == {"physics", "chemistry"}
    assert (old["long"].max_memory, old["admin"].hidden, old["admin"].state) == (180000 * 1024**2, True, "INACTIVE")
    assert (new["resv"].needs_reservation, new["root"].root_only) == (True, True)
    assert site("composed/23.02").partitions["preempt"].preemptible


@pytest.mark.parametrize(
    ("gres", "number", "types"),
    [
        ("gpu:2", 2, ()),
        ("gpu", 1, ()),
        ("gpu:a100", 1, ("a100",)),
        ("gpu:a100:2(S:0-1),gpu:v100:1(S:0),tmp:3G", 3, ("a100", "v100")),
        ("gpu:a100:3(IDX:0,2-3)", 3, ("a100",)),
        ("gpu:a100:2(IDX:0", 2, ("a100",)),
        ("(null)", 0, ()),
        ("shard:40,mps:200", 0, ()),
    ],
)
def test_gpus_of_a_nodes_resources(gres: str, number: int, types: tuple[str, ...]) -> None:
    assert (gpu_count(gres), gpu_types(gres)) == (number, types)


@pytest.mark.parametrize("text", ["", "Welcome\n", "slurm_load_partitions: Unable to contact slurm controller\n"])
def test_noise_is_no_partition(text: str) -> None:
    assert parse_site(text, text, text) == Site({})


FITS: list[tuple[str, dict[str, Any]]] = [
    (REAL, {}),
    (REAL, {"nodes": 2, "cpus_per_node": 4, "memory": 4000 * 1024**2, "gpus_per_node": 2, "time_limit": 3600}),
    (REAL, {"partition": "short,cpu", "nodes": 2}),
    (REAL, {"constraint": "skylake&ib"}),
    ("composed/20.11", {"nodes": 16, "constraint": "haswell"}),
    ("composed/20.11", {"partition": "long", "gpus_per_node": 4}),
    ("composed/21.08", {"account": "Science", "gpus_per_node": 3}),
    ("composed/24.05", {"partition": "resv", "reservation": "course"}),
    ("composed/25.05", {"gpus_per_node": 8, "constraint": "a100"}),
]


@pytest.mark.parametrize(("version", "wanted"), FITS)
def test_what_fits_is_let_through(version: str, wanted: dict[str, Any]) -> None:
    check(JobRequest("x", **wanted), site(version))


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (REAL, {"partition": "cp"}, "no partition 'cp'", "did you mean partition='cpu'?"),
    (REAL, {"partition": "zzz"}, "no partition 'zzz'", "the partitions are cpu, short, gpu, closed, spare"),
    (REAL, {"partition": "cpu,zzz"}, "no partition 'zzz'", "the partitions are"),
    (REAL, {"partition": "closed"}, "closed starts no jobs now (it is DOWN)", "partition='cpu'"),
    (REAL, {"time_limit": 7200}, "time_limit=2 h 0 min is more than the 1 h 0 min of partition cpu", "less time"),
    (
        REAL,
        {"partition": "short", "time_limit": 300},
        "more than the 2 min 0 s",
        "partition='cpu', or one of gpu, spare",
    ),
    (REAL, {"partition": "short", "nodes": 2}, "nodes=2 is more than the 1 a job may have", "partition='cpu'"),
    (REAL, {"nodes": 3}, "nodes=3 is more than the 2 there are in partition cpu", "no partition has that"),
    (REAL, {"cpus_per_node": 5}, "cpus_per_node=5 is more than the 4 of a node in partition cpu", "fewer CPUs"),
    (REAL, {"memory": 5 * GIB}, "memory=5.0 GiB is more than the 3.9 GiB of a node in partition cpu", "less memory"),
    (REAL, {"gpus_per_node": 3}, "gpus_per_node=3 is more than the 2 of a node", "fewer GPUs"),
    (REAL, {"constraint": "skylake"}, "0 of the nodes in partition cpu have the feature 'skylake'", "others"),
    ("composed/20.11", {"gpus_per_node": 1}, "more than a node has in partition batch", "partition='long'"),
    ("composed/20.11", {"nodes": 17}, "nodes=17 is more than the 16", "no partition has that"),
    ("composed/20.11", {"partition": "long", "memory": 200 * GIB}, "more than the 175.8 GiB", "no partition"),
    ("composed/21.08", {"account": "arts"}, "account='arts' may not use partition main", "science, teaching"),
    ("composed/21.08", {"partition": "teach"}, "takes no new jobs now (it is in DRAIN)", "partition='main'"),
    ("composed/23.02", {"nodes": 9, "memory": 900 * GIB}, "nodes=9, but 4 of the nodes", "no partition"),
    ("composed/24.05", {"nodes": 3}, "nodes=3 is more than the 2 a job may have", "no partition"),
    ("composed/24.05", {"partition": "resv"}, "takes jobs of a reservation only", "reservation="),
    ("composed/24.05", {"partition": "root"}, "for administrators only", "partition='standard'"),
    ("composed/25.05", {"partition": "private-lab"}, "for the groups private_lab only", "partition='shared-gpu'"),
]


@pytest.mark.parametrize(("version", "wanted", "what", "advice"), REFUSED)
def test_what_does_not_fit_is_refused_with_limit_and_what_would_do(
    version: str, wanted: dict[str, Any], what: str, advice: str
) -> None:
    with pytest.raises(Rejected) as caught:
        check(JobRequest("x", **wanted), site(version, groups="users chemistry"), where="desi")
    assert what in caught.value.what
    assert advice in caught.value.advice
    assert caught.value.where == "desi"


def test_groups_that_are_not_known_refuse_nobody() -> None:
    check(JobRequest("x", partition="private-lab"), site("composed/25.05"))


def test_a_site_that_shows_no_default_leaves_the_choice_to_slurm() -> None:
    check(JobRequest("x", nodes=99), Site({"cpu": Partition("cpu")}))


def test_a_site_that_shows_nothing_refuses_nothing() -> None:
    check(JobRequest("x", partition="cpu", nodes=99), Site({}))


def test_partitions_that_would_do_are_no_hidden_ones() -> None:
    assert would_do(JobRequest("x"), site("composed/20.11", groups="users")) == ["batch"]
