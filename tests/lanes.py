"""Which tests run one after the other in one process when several processes share the run (`--dist loadgroup`).

A file's tests stay together. Files that need the same hosts stand in one lane, so that few labs are made; the longest
lanes begin first, so that no process ends long after the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

LANES = {
    "slurm-causes": [
        "hosts/test_slurm_causes.py",
        "hosts/test_slurm_faults.py",
        "hosts/test_slurm_tries.py",
    ],
    "slurm-once": [
        "hosts/test_slurm_exactly_once.py",
        "hosts/test_slurm_launch.py",
        "hosts/test_slurm_map.py",
        "hosts/test_slurm_page.py",
        "hosts/test_slurm_release.py",
        "hosts/test_slurm_container.py",
        "hosts/test_slurm_dashboard.py",
        "hosts/test_campaign_control.py",
        "end_to_end/test_slurm_dialect.py",
        "end_to_end/test_slurm_cli.py",
    ],
    "contract": [
        "hosts/test_overview.py",
        "hosts/test_docs.py",
        "hosts/test_campaign.py",
        "hosts/test_campaign_trial.py",
        "hosts/test_cli_docs.py",
        "contract/test_cluster.py",
        "contract/test_item_stream.py",
        "contract/test_lock.py",
        "hosts/test_oar_launch.py",
        "contract/test_run_files.py",
    ],
    "mirror": ["hosts/test_shared_home.py", "hosts/test_mirror.py", "end_to_end/test_turn.py"],
    "launches": [
        "hosts/test_launch.py",
        "hosts/test_launch_cuts.py",
        "hosts/test_launch_killed.py",
        "hosts/test_turns.py",
        "hosts/test_lock.py",
        "hosts/test_trace.py",
    ],
    "ssh": [
        "hosts/test_environments.py",
        "hosts/test_secrets.py",
        "hosts/test_ssh_asking.py",
        "hosts/test_ssh_connection.py",
        "hosts/test_ssh_files.py",
        "hosts/test_ssh_keys.py",
        "hosts/test_ssh_log_in.py",
        "hosts/test_log_in.py",
        "hosts/test_faults.py",
        "hosts/test_init_guide.py",
        "hosts/test_upkeep.py",
        "hosts/test_lab.py",
    ],
    "campaigns": [
        "end_to_end/test_campaign.py",
        "end_to_end/test_campaign_items.py",
        "end_to_end/test_campaigns_share.py",
        "end_to_end/test_campaign_flow.py",
        "end_to_end/test_grid_cli.py",
        "end_to_end/test_grid_users.py",
        "end_to_end/test_task_runner.py",
    ],
    "labs": ["hosts/test_slurm_lab.py"],
}
"""The files of each lane, the longest first."""
ACCOUNTS = "accounts"
"""The lane of all tests of the one cluster that keeps accounts, from whichever file."""
OF_ACCOUNTS = (
    "end_to_end/test_slurm_dialect.py::test_the_accounts_tell_how_a_job_ended_and_what_it_used",
    "hosts/test_slurm_causes.py::test_accounting_knows_what_the_queue_has_forgotten",
    "hosts/test_slurm_exactly_once.py::test_a_flow_run_that_is_started_again_picks_up_its_job",
    "hosts/test_slurm_exactly_once.py::test_a_job_that_the_accounts_have_as_running_lives",
    "hosts/test_slurm_exactly_once.py::test_accounting_has_it_once",
    "hosts/test_slurm_lab.py::test_accounts_are_kept_where_they_are",
    "hosts/test_slurm_lab.py::test_the_log_says_why_there_are_no_accounts",
)
ORDER = ["slurm-causes", "mirror", "slurm-once", "launches", "contract", ACCOUNTS, "ssh", "campaigns", "labs"]
TESTS = Path(__file__).parent


KNOWN = {file: lane for lane, files in LANES.items() for file in files}


class Lanes(LoadScopeScheduling):
    """Hands out whole lanes. (The groups of pytest-xdist 3.8 are not found in the ids of pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)


def lane(nodeid: str) -> str:
    """The lane of a test."""
    name = nodeid.removeprefix("tests/")
    file = name.partition("::")[0]
    return ACCOUNTS if name in OF_ACCOUNTS else KNOWN.get(file, file)


def arrange(items: list[pytest.Item]) -> None:
    """Bring the lanes into their order; each test of the cluster with accounts must be named above."""
    if gone := [file for file in KNOWN if not (TESTS / file).exists()]:
        raise pytest.UsageError(f"tests/lanes.py names files that are not there: {', '.join(gone)}")
    for item in items:
        if ("accounting_lab" in getattr(item, "fixturenames", ())) != (lane(item.nodeid) == ACCOUNTS):
            raise pytest.UsageError(f"tests/lanes.py has {item.nodeid} in a wrong lane")
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    items.sort(key=lambda item: ranks.get(lane(item.nodeid), len(ranks)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes | None:
    """With `--dist loadgroup`, the groups are the lanes."""
    return Lanes(config, log) if config.getoption("dist") == "loadgroup" else None
