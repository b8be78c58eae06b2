"""What a launch shows in Prefect: waits, progress, files, names."""

from pathlib import PurePosixPath

from slurm_ray_flow.core.artifacts import (
    MOST_FILES,
    LaunchProgress,
    WaitHistory,
    about_files,
    about_run,
    cell,
    flow_run_name,
    tags_of,
)
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.snapshot.entries import Entry, LeftOut

NOW = 1_800_000_000.0


def test_a_wait_is_news_when_its_reason_changes_and_not_when_a_number_does():
    waits = WaitHistory()
    assert waits.wait("behind 3 jobs; starts in about 10 min", NOW)
    assert not waits.wait("behind 2 jobs; starts in about 9 min", NOW + 60)
    assert waits.wait("held by its | owner", NOW + 120)
    shown = waits.content(NOW + 130)
    assert "2 min 10 s" in shown.data
    assert "behind 2 jobs" in shown.data and "behind 3 jobs" not in shown.data
    assert "held by its \\| owner" in shown.data
    over = waits.over(NOW + 180)
    assert over and over.description == "waited 3 min 0 s"
    assert waits.over(NOW + 190) is None
    assert waits.wait("held by its | owner", NOW + 200), "another try waits anew"


def test_who_never_waited_shows_no_wait():
    assert WaitHistory().over(NOW) is None


def test_the_bar_moves_with_the_steps_and_then_with_the_function_s_own():
    advance = LaunchProgress()
    for step in ("scan_imports", "start_ray", "execute_call"):
        advance.step(step)
    begun = advance.percent
    assert not advance.log(b"accuracy 93% on the test set\n")
    assert advance.percent == begun
    assert advance.log(b"progress: 25%\n")
    quarter = advance.percent
    assert advance.log(b"\rprogress: 50 %\n")
    assert begun < quarter < advance.percent < 99
    advance.end(good=True)
    assert advance.content().data == 100


def test_a_line_that_is_cut_between_two_pieces_is_read():
    advance = LaunchProgress()
    advance.step("execute_call")
    assert not advance.log(b"\rprogress: 4")
    assert advance.log(b"0 %")
    assert advance.content().description == "execute_call: the function is at 40%"


def test_a_failed_try_begins_anew_and_keeps_its_bar_where_it_failed():
    advance = LaunchProgress()
    advance.step("execute_call")
    advance.log(b"progress: 80 %")
    advance.step("scan_imports")
    assert advance.percent == 0
    advance.end(good=False)
    assert advance.content().data < 100


def entry(place, size, link=None):
    return Entry(place, f"/home/{place}", size, 0, 0o644, "0" * 64, link)


def test_what_travelled_comes_first_and_a_long_list_ends():
    entries = [entry(f"project/{number:03}.py", number) for number in range(MOST_FILES + 5)]
    entries.append(entry("project/latest", 3, link="000.py"))
    shown = about_files(entries, {"project/001.py"}, 2048, 10_000)
    assert shown.data[0] == {"file": "001.py", "bytes": 1, "how": "sent"}
    assert shown.data[-1]["file"] == "and 6 more"
    assert sum(row["bytes"] for row in shown.data) == sum(one.size for one in entries)
    assert "1 of 206 files sent, 2.0 KiB" in shown.description
    assert {row["how"] for row in about_files(entries[-1:], (), 0, 3).data} == {"link"}


def test_a_run_says_where_it_is_and_what_to_type():
    record = RunRecord(
        "3f2a81c0-1111", "f", "curnagl", "slurm-cluster", "/home/a", "3f2a81c0-1111", "3f2a81c0-1111", "train", 1, 1, ""
    )
    options = Options().but(nodes=2, gpus_per_node=1, memory="8G", env_vars={"TOKEN": "hidden"})
    shown = about_run(record, {"job": "4711", "nodelist": "c[1-2]"}, options)
    assert "`4711`" in shown.data and "`c[1-2]`" in shown.data
    assert "2 nodes, 1 GPU, 8.0 GiB" in shown.data
    assert str(PurePosixPath("/home/a/runs/3f2a81c0-1111/log.txt")) in shown.data
    assert "srf cancel 3f2a81c0" in shown.data
    assert "hidden" not in shown.data and "TOKEN" not in shown.data
    assert shown.key("my_train", "slurm-cluster/curnagl") == "run-my-train-on-curnagl"


def test_names_and_tags():
    assert flow_run_name("train", "slurm-cluster/curnagl", 2) == "train on curnagl, 2 nodes"
    assert flow_run_name("train", "local", 1) == "train on local"
    assert tags_of("train", "ssh-server/desi", "ssh-server") == {"slurm-ray-flow", "train", "desi", "ssh-server"}


def test_what_others_wrote_harms_no_table():
    assert cell("a | b\n<script> [x](y)\x1b[31m") == r"a \| b \<script\> \[x\](y)\\x1b\[31m".replace("\\\\x", "\\x")


def test_what_stays_at_home_is_listed_before_what_travels_with_its_reason():
    entries = [Entry("project/lab/a.json", "/p/lab/a.json", 10, 0, 0o644, "0" * 64)]
    left = [
        LeftOut("lab/raw/", 0, "named in .gitignore"),
        LeftOut("lab/b.bin", 2048, "too much"),
        LeftOut("a\udce9", 1, "odd"),
    ]
    shown = about_files(entries, {"project/lab/a.json"}, 10, 10, left)
    assert [row["file"] for row in shown.data] == ["lab/b.bin", "a\\xe9", "lab/raw/", "lab/a.json"]
    assert [row["bytes"] for row in shown.data] == [2048, 1, 0, 10]
    assert "too much" in shown.data[0]["how"] and "include" in shown.data[0]["how"]
    assert "3 of packages left at home" in shown.description and "2.0 KiB" in shown.description
