"""Which tests `make test` leaves to `make test-all`: the one table of them, each with its reason.

The tests of the hosts themselves are left out, too, as long as the files that make the hosts are those that they have
passed with: their digest is in hosts/tried.txt. A run in which all of them pass writes it anew.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

SPEED = "its bound is a part of a second: it needs a machine with little else to do"
LONG = {
    "contract/test_cluster.py::test_a_root_with_an_odd_name[[]ssh-server-*": (
        "six names; the odd ones are tried on this machine, the first one on each kind of cluster"
    ),
    "contract/test_cluster.py::test_a_root_with_an_odd_name[[]slurm-cluster-*": "the same, and each name is a job",
    "contract/test_cluster.py::test_ray_starts_below_a_root_whose_path_is_too_long_for_a_socket[[]ssh-server]": (
        "the same code as on this machine; on Slurm it has another folder"
    ),
    'hosts/test_slurm_exactly_once.py::test_a_site_that_says_it_in_its_own_words[[]*d."]': (
        "one of three wordings; the strictest stays, and tests/unit reads them all"
    ),
    "contract/test_without_prefect.py::test_commands_on_a_run_import_no_prefect[[]slurm-cluster]": (
        "it is reached by the same code as by SSH, which stays"
    ),
    "contract/test_without_prefect.py::test_commands_on_a_run_import_no_prefect[[]oar-cluster]": "the same",
    "contract/test_cluster.py::test_a_root_with_an_odd_name[[]oar-cluster-*": "as for Slurm",
    "hosts/test_oar_launch.py::test_a_best_effort_run_that_is_preempted_is_tried_again": (
        "two minutes of OAR's own pace; tests/recorded has how OAR tells it, and what follows is as on Slurm"
    ),
    "hosts/test_campaign_trial.py::*": "minutes of the machine; most of the troubles by themselves stay",
    "hosts/test_slurm_container.py::*": (
        "six Ray nodes, 45 s of processor; end_to_end/test_container.py has Ray in a container on this machine"
    ),
    "hosts/test_slurm_dashboard.py::*[[]1]": "the one of two nodes stays",
    "hosts/test_slurm_launch.py::test_nodes_that_share_their_temporary_folder": "a rare site",
    "hosts/test_slurm_launch.py::test_a_run_is_followed_from_other_processes": "hosts/test_launch.py has it by SSH",
    "hosts/test_slurm_launch.py::test_fifty_megabytes_go_there_and_come_back": "hosts/test_launch.py has it by SSH",
    "hosts/test_slurm_tries.py::test_what_was_used_is_told_of_each_node": (
        "the sums are tests/unit's; end_to_end/test_efficiency.py has what is told of one node"
    ),
    "hosts/test_slurm_tries.py::test_a_task_of_ray_that_takes_too_much_memory_is_told_as_that[[]beside*]": (
        "the one on the other node stays"
    ),
    "hosts/test_slurm_causes.py::test_what_ray_can_not_place_without_a_lost_node_is_told": (
        "nearly a minute for a rare end; that a node is lost, and that a run goes on without it, stay"
    ),
    "hosts/test_turns.py::test_a_flow_run_that_is_started_again_keeps_the_server_or_its_place_in_the_line": (
        "end_to_end/test_turn.py has restarts, and hosts/test_slurm_exactly_once.py flow runs that are started again"
    ),
    "hosts/test_launch_cuts.py::test_a_cut_in_any_step_costs_nothing[[]short]": "the long one stays",
    "hosts/test_slurm_faults.py::test_a_cut_in_any_step_costs_nothing[[]2]": "the long one stays",
    "hosts/test_shared_home.py::test_a_tunnel_to_a_server_that_died_with_its_host_costs_no_launch": (
        "nearly two minutes for a rare end; that a server is killed on one of two hosts stays"
    ),
    "hosts/test_slurm_causes.py::test_a_job_whose_processes_are_killed_with_slurms_own_gets_its_verdict": (
        "most of a minute; on a busy machine Slurm takes the node for lost before, which is another cause"
    ),
    "hosts/test_slurm_causes.py::test_accounting_knows_what_the_queue_has_forgotten": (
        "Slurm takes a minute and a half to forget; tests/recorded has the accounts' answers"
    ),
    "end_to_end/head/test_ray.py::test_a_killed_head_takes_its_own_ray_along_and_no_other[[][ki]*": (
        "both parts at once stays; test_ends.py kills each of them without Ray"
    ),
    "end_to_end/head/test_lock_limits.py::test_ray_is_gone_before_the_next_one_begins[[][ki]*": "the same",
    "end_to_end/test_dead_server.py::test_the_value_comes_home_all_the_same[[]async]": "the plain function stays",
    "end_to_end/test_isolated.py::test_the_digits_in_an_environment_of_their_own": (
        "half a minute of processor for one more environment; `make demo` has the same search in this Python"
    ),
    "end_to_end/head/test_lock.py::test_the_next_one_follows_within_a_fifth_of_a_second": SPEED,
    "end_to_end/head/test_ray.py::test_a_second_call_is_answered_at_once": SPEED,
    "end_to_end/test_server.py::test_a_server_that_runs_is_found_without_a_request": SPEED,
    "hosts/test_environments.py::test_what_is_there_costs_one_short_question": SPEED,
    "unit/test_slurm_numbers.py::test_a_broken_answer_breaks_no_reader[[][3-9]]": "seven of ten seeds",
    "end_to_end/test_power_cut.py::test_each_run_has_its_value_or_its_cause[[]2]": "the second of two chances",
}
"""Patterns of test ids below tests/, and why. Besides, `make test` tries a quarter of the texts of strangers
(SRF_FUZZ, unit/test_strangers.py)."""
KEPT = ("contract/test_cluster.py::test_a_root_with_an_odd_name[[]*-it's; rm -rf $HOME]",)
"""Those that stay all the same."""
OF_HOSTS = ("hosts/test_lab.py", "hosts/test_slurm_lab.py", "hosts/test_faults.py", "hosts/test_log_in.py")
TESTS = Path(__file__).parent
TRIED = TESTS / "hosts" / "tried.txt"
USERS = {
    "conftest.py",
    "launcher.py",
    "launch_lab.py",
    "slurm_launch_lab.py",
    "oar_launch_lab.py",
    "ssh_lab.py",
    "twin.py",
}
"""Files beside the hosts' own that only use hosts."""


def digest() -> str:
    """Of all files that make the hosts."""
    found = hashlib.sha256()
    for file in sorted((TESTS / "hosts").glob("*.py")):
        if file.name not in USERS and not file.name.startswith("test_"):
            found.update(f"{file.name}\0{file.read_text()}\0".encode())
    return found.hexdigest()


def mark(items: list[pytest.Item]) -> None:
    """Mark what is left to `make test-all`."""
    tried = TRIED.exists() and TRIED.read_text().strip() == digest()
    for item in items:
        name = _name(item.nodeid)
        if (tried and name.startswith(OF_HOSTS)) or (
            any(fnmatchcase(name, one) for one in LONG) and not any(fnmatchcase(name, one) for one in KEPT)
        ):
            item.add_marker("long")


def _name(nodeid: str) -> str:
    return nodeid.removeprefix("tests/")


class Tried:
    """Writes the digest when all tests of the hosts have passed, in whichever processes."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _name(report.nodeid).startswith(OF_HOSTS) and (report.when == "call" or report.outcome != "passed"):
            self.outcomes[_name(report.nodeid).partition("::")[0], report.outcome] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        config = session.config
        whole = not config.getoption("keyword") and not any("::" in argument for argument in config.args)
        passed = all(self.outcomes[file, "passed"] for file in OF_HOSTS)
        bad = any(count for (_, outcome), count in self.outcomes.items() if outcome != "passed")
        if whole and passed and not bad:
            TRIED.write_text(f"{digest()}\n")
