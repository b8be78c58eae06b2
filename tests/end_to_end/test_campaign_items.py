"""The items of a campaign: read from tables, written as one, added, run again, and what they printed."""

import csv
import json
import os

import pytest

from slurm_ray_flow import (
    Campaign,
    CampaignState,
    Cancelled,
    Command,
    CommandFailed,
    GridError,
    OptionError,
    PayloadError,
    slurm_ray_flow,
)
from slurm_ray_flow.blocks.grid_engine import EngineFiles
from slurm_ray_flow.grid.client import GridClient
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine")]


@pytest.fixture
def rooted(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def rooted(number: float, power: int = 2, folder: str = "") -> dict:
        import pathlib

        print(f"item of {number}")
        if number < 0 and not pathlib.Path(folder, "mended").exists():
            raise ValueError(f"no root of {number}")
        if number == 99:
            while not pathlib.Path(folder, "go").exists():
                pass
        return {"root": abs(number) ** (1 / power), "odd": number % 2 == 1}

    return rooted


def test_a_table_goes_in_and_a_table_comes_out(rooted, tmp_path):
    values = tmp_path / "values.csv"
    values.write_text("number,power\n4,2\n-27,3\n9,\n")
    campaign = rooted.campaign(values, same={"folder": str(tmp_path)}, key="number")
    found = list(campaign.results(return_exceptions=True, timeout=240))
    assert (found[0], found[2]) == ({"root": 2.0, "odd": False}, {"root": 3.0, "odd": True})
    assert isinstance(found[1], ValueError)
    assert campaign.wait(60).state is CampaignState.FAILED
    assert campaign.to_table(tmp_path / "out.csv") == campaign.to_table(str(tmp_path / "out.jsonl")) == 3
    with open(tmp_path / "out.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "number",
        "argument.number",
        "power",
        "state",
        "seconds",
        "value.root",
        "value.odd",
        "error",
    ]
    assert [(row["argument.number"], row["power"], row["value.root"]) for row in rows] == [
        ("4.0", "2", "2.0"),
        ("-27.0", "3", ""),
        ("9.0", "", "3.0"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["number"], line["state"]) for line in lines] == [(0, "succeeded"), (1, "failed"), (2, "succeeded")]
    assert "no root of -27" in lines[1]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl", "values.csv"]
    with pytest.raises(OptionError, match=r"\.xlsx"):
        campaign.to_table(tmp_path / "out.xlsx")
    assert [campaign.log(number) for number in (0, 1, -1)] == ["item of 4.0\n", "item of -27.0\n", "item of 9.0\n"]
    assert Campaign.attach(campaign.id).log(2) == "item of 9.0\n"


def test_a_parquet_file_has_types(rooted, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    campaign = rooted.campaign([4.0, 9.0])
    campaign.wait(180)
    campaign.to_table(tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.to_pydict()["value.root"] == [2.0, 3.0]
    assert [str(table.schema.field(name).type) for name in ("number", "value.root", "value.odd", "state")] == [
        "int64",
        "double",
        "bool",
        "string",
    ]


def test_items_that_failed_run_again(rooted, tmp_path):
    campaign = rooted.campaign([-4, 4, -9, 9], same={"folder": str(tmp_path)})
    assert campaign.wait(180).failed == 2
    (tmp_path / "go").touch()
    begun = campaign.results(in_order=False, return_exceptions=True, timeout=240)
    first = next(begun)
    (tmp_path / "mended").touch()
    assert campaign.resubmit(only=[0, 1]) == 1
    with pytest.raises(LookupError):
        campaign[0]
    assert campaign.wait(180).state is CampaignState.FAILED
    assert campaign.failed == [2]
    assert campaign[0] == {"root": 2.0, "odd": False}
    assert campaign.resubmit() == 1
    values = list(campaign.results(timeout=240))
    assert [value["root"] for value in values] == [2.0, 2.0, 3.0, 3.0]
    assert sorted(value["root"] for value in campaign.results(in_order=False)) == [2.0, 2.0, 3.0, 3.0]
    assert campaign.failed == [] and campaign.resubmit() == 0
    assert len([first, *begun]) == 4, "a stream from before gives each item once"
    status = campaign.wait(60)
    assert (status.state, status.succeeded, status.failed) == (CampaignState.SUCCEEDED, 4, 0)
    with pytest.raises(GridError, match="items 0 to 3"):
        campaign.resubmit([4])


def test_a_cancelled_campaign_goes_on(rooted, tmp_path):
    campaign = rooted.campaign([99, *range(500)], same={"folder": str(tmp_path)})
    campaign.pause()
    campaign.cancel()
    wait_for(lambda: campaign.status().ended == 501)
    (tmp_path / "go").touch()
    assert campaign.resubmit() == campaign.status().resubmitted > 0
    assert len(list(campaign.results(timeout=240))) == 501


def test_items_are_added_to_a_campaign_that_goes_on(rooted, tmp_path):
    campaign = rooted.campaign([99, *range(1100)], same={"folder": str(tmp_path)})
    values = tmp_path / "more.jsonl"
    values.write_text('{"number": 4}\n{"number": "9", "power": 2}\n')
    assert campaign.add(values) == 2
    assert Campaign.attach(campaign.id).add(float(number) for number in range(1000)) == 1000
    with pytest.raises(OptionError, match="same key"):
        campaign.add([1, 1], key=lambda number: number)
    with pytest.raises(PayloadError, match="value 1300"):
        campaign.add([*range(1300), (number for number in range(3))])
    assert (campaign.add([]), campaign.add([16])) == (0, 1)
    assert len(campaign) == 2104
    (tmp_path / "go").touch()
    roots = [value["root"] for value in campaign.results(timeout=240)]
    assert roots[1:] == [number ** (1 / 2) for number in [*range(1100), 4, 9, *range(1000), 16]]
    campaign.wait(60)
    with pytest.raises(GridError, match="has ended"):
        campaign.add([1])


def test_a_program_of_the_project_runs_for_each_row(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "simulate"
    program.write_text('#!/bin/sh\necho "seed $1"\n[ "$1" != 13 ] || exit 4\necho "$1,$2" > "$3"\n')
    program.chmod(0o755)
    (tmp_path / "values.csv").write_text("seed,name\n007,a b\n13,c\n9,$(id)\n")
    command = Command("./simulate {seed} {name} {seed}.csv", outputs=["{seed}.csv"], cpus_per_node=2)
    campaign = command.campaign(tmp_path / "values.csv", clusters=["local"], key="seed")
    first, second, third = campaign.results(return_exceptions=True, timeout=240)
    assert (first.exit_code, first.outputs) == (0, {"007.csv": b"007,a b\n"})
    assert third.outputs == {"9.csv": b"9,$(id)\n"}
    assert isinstance(second, CommandFailed) and second.exit_code == 4
    assert "seed 13" in str(second)
    assert campaign.log(1) == "seed 13\n"
    campaign.to_table("out.csv")
    assert "exit_code" in (tmp_path / "out.csv").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"simulate", "values.csv", "out.csv"}
    with pytest.raises(TypeError, match=r"seed.*value 1"):
        command.campaign([{"seed": 1, "name": 2}, {"name": 3}])


def left():
    folder = EngineFiles().folder / "campaigns"
    return {path.name for path in folder.iterdir()}, len(GridClient().campaigns())


def test_scripts_run_around_all_items_of_a_pilot(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = Command(
        "cat made; echo job=${{OAR_JOB_ID}}; echo {seed} > out",
        outputs=["out"],
        prologue="echo before > made",
        epilogue=f"wc -l < made > {tmp_path}/after; echo bye; exit 3",
        cpus_per_node=1,
    )
    campaign = command.campaign([{"seed": 1}, {"seed": 2}])
    assert [result.outputs["out"] for result in campaign.results(timeout=240)] == [b"1\n", b"2\n"]
    [pilot] = GridClient().pilots(campaign.id)
    assert campaign.log(0) == f"before\njob={pilot['run_id']}\n"
    wait_for(lambda: GridClient().events(campaign.id))
    [event] = GridClient().events(campaign.id)
    assert (event["code"], event["level"]) == ("epilogue", "warning")
    assert "exit code 3" in event["message"] and event["message"].endswith("bye")
    assert (tmp_path / "after").read_text() == "1\n"
    assert GridClient().description(campaign.id)["clusters"]["local"]["pilot"]["prologue"]["seconds"] == 600.0


@pytest.mark.parametrize(
    ("lines", "limit", "why"),
    [("echo no scratch here\nfalse\necho not reached", "10m", "exit code 1"), ("sleep 600", 0.5, "within 0 s")],
)
def test_a_prologue_that_fails_closes_the_cluster_to_the_campaign_with_what_it_printed(server, lines, limit, why):
    campaign = Command("true {n}", prologue=lines, prologue_limit=limit).campaign([{"n": 1}])
    wait_for(lambda: campaign.state is CampaignState.PAUSED)
    status = campaign.status()
    assert status.clusters[0].state == "paused"
    assert why in status.reason and "prologue" in status.reason
    assert "sleep" in lines or "It printed last:\nno scratch here" in status.reason
    assert "not reached\n" not in status.reason.replace(lines, "")
    [event] = GridClient().events(campaign.id)
    assert event["message"] in status.reason
    campaign.cancel()


def test_items_are_cancelled_alone_and_the_others_go_on(rooted, tmp_path):
    values = [4, 99, 9, *[16] * 2000]
    campaign = rooted.campaign(values, same={"folder": str(tmp_path)})
    wait_for(lambda: campaign.status().succeeded)
    campaign.cancel([1, 2002])
    with pytest.raises(GridError):
        campaign.cancel([2003])
    assert campaign.status().cancelled == 2
    (tmp_path / "go").touch()
    status = campaign.wait(240)
    assert (status.state, status.succeeded, status.cancelled) == (CampaignState.FAILED, 2001, 2)
    assert "2 of 2003 items were cancelled" in status.reason
    values = list(campaign.results(return_exceptions=True))
    assert [number for number, value in enumerate(values) if isinstance(value, Cancelled)] == [1, 2002]
    assert campaign.failed == []
    assert campaign.resubmit() == 2
    assert campaign.wait(240).state is CampaignState.SUCCEEDED
    assert len(list(campaign.results())) == 2003


def test_what_fails_or_is_interrupted_while_it_is_stored_leaves_nothing(rooted, tmp_path):
    def interrupted():
        yield from range(1500)
        raise KeyboardInterrupt

    before = left()
    with pytest.raises(KeyboardInterrupt):
        rooted.campaign(interrupted())
    with pytest.raises(OptionError, match="value 1 and value 1200 have the same key"):
        rooted.campaign([*range(1200), 1], key=lambda number: number)
    with pytest.raises(ZeroDivisionError):
        rooted.campaign(1 / (1100 - number) for number in range(2000))
    (tmp_path / "values.csv").write_text("number\n1\nmany\n")
    with pytest.raises(OptionError, match=r"values\.csv:3"):
        rooted.campaign(tmp_path / "values.csv")
    assert left() == before
    assert os.listdir(tmp_path) == ["values.csv"]
