"""The catalog: what it lists is what the records say, whatever has become of it meanwhile."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from slurm_ray_flow.blocks import catalog, store
from slurm_ray_flow.blocks.server import settings
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.grid.model import Campaign, CampaignState
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.grid.database import URL_VARIABLE
from slurm_ray_flow.grid.store import Store, default_url


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))


def noted(**changes) -> RunRecord:
    name = str(uuid.uuid4())
    record = RunRecord(name, name, "desi", "ssh-server", "/r", name, name, "train", 1, 1, "gone", created=100.0)
    record = dataclasses.replace(record, **changes)
    store.save_record(record)
    return record


def listed() -> list[RunRecord]:
    return [run.record for run in catalog.runs()]


def test_what_changes_in_the_records_changes_in_the_list():
    first, second = noted(), noted()
    assert listed() == list(store.records())
    store.save_record(dataclasses.replace(first, ended="lost"))  # and so it is the newest
    store.no_longer_warm(second)  # with the time of before
    assert listed() == list(store.records())
    assert [run.state for run in catalog.runs()] == ["lost", ""]
    store.record_path(second.run_id).unlink()
    store.record_path(first.run_id).write_text('{"run_id":')  # by a loss of power
    assert catalog.runs() == catalog.runs() == []


def test_a_run_has_its_times_its_cost_and_its_outcome():
    use = {"wall": 1800.0, "cpu_seconds": 900.0, "cpus": 4, "memory_peak": 1}
    noted(ended="succeeded", ended_at=2000.0, usage=use, gpus=2)
    (run,) = catalog.runs()
    assert (run.cpu_hours, run.gpu_hours, run.outcome, run.ended_at) == (2.0, 1.0, "value", 2000.0)
    noted(ended="failed", failure_cause="user_code")
    noted(ended="failed", failure_cause="out_of_memory")
    assert [(run.cause, run.outcome) for run in catalog.runs()[:2]] == [
        ("out_of_memory", ""),
        ("user_code", "exception"),
    ]


@pytest.mark.parametrize("damage", [b"no database", b"", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_catalog_is_made_anew(damage):
    record = noted()
    assert listed() == [record]
    catalog.remove(home() / "catalog.db")
    (home() / "catalog.db").write_bytes(damage)
    assert listed() == [record]
    assert catalog._listed(home() / "catalog.db") == (catalog.runs(), True)


def test_one_of_another_version_is_made_anew_or_passed_over():
    record = noted()
    assert listed() == [record]
    for version, left in ((0, catalog.VERSION), (catalog.VERSION + 1, catalog.VERSION + 1)):
        with sqlite3.connect(home() / "catalog.db") as connection:
            connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("DROP TABLE runs")
        assert listed() == [record]
        assert sqlite3.connect(home() / "catalog.db").execute("PRAGMA user_version").fetchone() == (left,)


def test_a_catalog_that_somebody_writes_into_is_passed_over():
    first = noted()
    assert listed() == [first]
    holder = sqlite3.connect(home() / "catalog.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    second = noted()
    assert listed() == [second, first]
    holder.execute("ROLLBACK")
    assert listed() == [second, first]


def test_many_processes_fill_it_at_once():
    for _ in range(50):
        noted()
    program = "from slurm_ray_flow.blocks import catalog; print(len(catalog.runs()))"
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == [b"50\n"] * 4
    assert len(catalog.runs()) == 50


def test_it_is_its_users_alone_and_made_anew_on_demand():
    record = noted()
    catalog.runs()
    file = home() / "catalog.db"
    assert file.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE runs SET state = 'failed'")
    assert [run.state for run in catalog.runs()] == ["failed"]
    catalog.rebuild()
    assert [run.state for run in catalog.runs()] == [""]
    assert listed() == [record]


def test_on_a_network_file_system_it_lies_beside_prefects_database(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "on_network", lambda _: True)
    monkeypatch.setattr(settings, "on_network", lambda _: True)
    record = noted()
    assert listed() == [record]
    assert catalog.catalog_file() is None
    files = catalog.server_files()
    files.folder.mkdir(parents=True)
    database = settings.local_file(files)
    try:
        assert listed() == [record]
        assert catalog.catalog_file() == database.with_name("catalog.db")
        assert database.with_name("catalog.db").exists()
        assert not (home() / "catalog.db").exists()
    finally:
        catalog.remove(database.with_name("catalog.db"))
        os.rmdir(database.parent)


def test_what_the_grid_keeps_beside_it_comes_home_when_the_server_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "on_network", lambda _: True)
    monkeypatch.setattr(settings, "on_network", lambda _: True)
    monkeypatch.setattr(settings, "LOCAL_DISK", str(tmp_path))
    with pytest.raises(GridError, match="network"):
        default_url()
    files = catalog.server_files()
    files.folder.mkdir(parents=True)
    made = Campaign("c" * 32, "sums", "alice", "add")
    for times in range(3):
        Path(settings.local_file(files)).touch()
        grid = Store(default_url())
        grid.migrate()
        assert grid.campaigns() == [made][:times]
        if not times:
            grid.add_campaign(made)
        assert list(settings.keep_copy(files)) == []
        assert bool(grid.set_campaign_state(made.id, CampaignState.ACTIVE, f"time {times}"))
        made = dataclasses.replace(made, reason=f"time {times}")
        grid.close()
        list(settings.keep_copy(files, ended=True))
        assert list(tmp_path.glob("srf-database-*")) == []


def test_prefect_is_not_imported_where_no_cluster_is_asked(tmp_path):
    noted(ended="succeeded", ended_at=160.0)
    noted(kind="local-machine", cluster="local", root=str(tmp_path))
    program = (
        "import sys; from slurm_ray_flow.cli import main, runs; runs.runs(rebuild=True); "
        "print(sorted({'prefect', 'rich.table'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    lines = shown.splitlines()
    assert lines[-1] == "[]"
    assert sorted(line.split()[3] for line in lines[1:-1]) == ["lost", "succeeded"]


def test_the_grids_database_is_remembered_until_it_is_the_file_again(monkeypatch):
    """The supervisor starts the engine anew, and need not have the variable."""
    file, url = default_url(), "postgresql://srf:hidden@lab/grid"
    monkeypatch.setenv(URL_VARIABLE, f" {url}\n")
    assert default_url() == url
    monkeypatch.delenv(URL_VARIABLE)
    assert default_url() == url
    [kept] = [path for path in home().rglob("*") if path.is_file() and url in path.read_text()]
    assert kept.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(URL_VARIABLE, "sqlite")
    assert default_url() == file
    monkeypatch.delenv(URL_VARIABLE)
    assert default_url() == file
