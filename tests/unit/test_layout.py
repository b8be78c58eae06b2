"""The promises of the layout (docs/decisions/0001)."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import slurm_ray_flow

TOP = Path(__file__).parents[2]
LINKED = ("flows", "tasks", "blocks", "deployments")


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=TOP, capture_output=True, text=True, check=True).stdout
    return set(listed.splitlines())


@pytest.mark.parametrize("name", LINKED)
def test_the_links_lead_home(name):
    link = TOP / "src" / "slurm_ray_flow" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == TOP / name


def test_no_flow_hides_an_importable_module():
    """Prefect's by-path loader puts flows/ first on sys.path: a flows/ray.py would hide Ray."""
    names = {path.stem for path in (TOP / "flows").glob("*.py")} - {"__init__"}
    found = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            "import importlib.util, sys\nprint([n for n in sys.argv[1:] if importlib.util.find_spec(n)])",
            *names,
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert found.stdout.strip() == "[]"


def test_the_wheel_holds_exactly_the_tracked_files(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=TOP, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("slurm_ray_flow-")}
    inside = {name.removeprefix("src/") for name in tracked("src") if not (TOP / name).is_symlink()}
    assert held == inside | {f"slurm_ray_flow/{name}" for name in tracked(*LINKED)}


def test_the_public_names():
    assert sorted(slurm_ray_flow.__all__) == [
        "Campaign",
        "CampaignState",
        "Cancelled",
        "ClusterTaskRunner",
        "Command",
        "CommandFailed",
        "CommandResult",
        "ConnectionFailed",
        "Crashed",
        "DependencyError",
        "EndWarning",
        "EnvironmentFailed",
        "GridError",
        "GridTokenError",
        "Handle",
        "Handles",
        "HostKeyFailed",
        "InputFailed",
        "LocalMachine",
        "LockFailed",
        "LogInFailed",
        "Lost",
        "NodeFailed",
        "NotAllowedError",
        "OarCluster",
        "OptionError",
        "OutOfMemory",
        "PayloadError",
        "Preempted",
        "Rejected",
        "ResultError",
        "RunError",
        "RunState",
        "ScanError",
        "ServerError",
        "SlurmCluster",
        "SlurmRayFlowError",
        "SshConnection",
        "SshServer",
        "SyncError",
        "TimeLimit",
        "UnknownCampaignError",
        "UnknownRunError",
        "as_completed",
        "attach",
        "checkpoint",
        "on_the_server",
        "on_warning",
        "slurm_ray_flow",
    ]
    for name in slurm_ray_flow.__all__:
        assert getattr(slurm_ray_flow, name) is not None


@pytest.mark.parametrize(("page", "count"), [("security.md", 40), ("decisions/0016-grid.md", 35)])
def test_each_test_that_a_page_names_is_there(page, count):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (TOP / "docs" / page).read_text())
    assert len(named) > count
    assert [pair for pair in named if f"\ndef {pair[1]}(" not in (TOP / pair[0]).read_text()] == []
