"""The record of a map: the order of its lines decides which process begins its calls, and which calls begin."""

import subprocess
import sys

import pytest

from slurm_ray_flow.blocks import map_record
from slurm_ray_flow.core.errors import Cancelled

ANOTHER = """
import sys
from slurm_ray_flow.blocks import map_record
record = map_record.find_map(sys.argv[1])
print(record.alive, flush=True)
sys.stdin.readline()
print(map_record.claim_map(record), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))


def another(map_id):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", ANOTHER, map_id], stdin=pipe, stdout=pipe, text=True)
    return process, process.stdout.readline().strip()


def claimed(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip() == "True"


def test_of_two_processes_that_claim_a_map_after_a_third_one_has_it():
    map_record.record_map("m", "f", "local", ["1", "2"])
    (first, alive), (second, _) = another("m"), another("m")
    assert alive == "True", "this process began it, and lives: who asks takes nothing over"
    assert [claimed(first), claimed(second)] == [True, False]
    record = map_record.find_map("m")
    assert (record.pid, record.is_engines, record.alive) == (first.pid, True, True)
    first.kill()
    second.communicate("\n")
    first.communicate()
    assert not map_record.find_map("m").alive


def test_a_call_begins_before_its_cancel_or_not_at_all():
    map_record.record_map("m", "f", "local", ["1", "2", "3"])
    map_record.note_begun("m", 0, "run-0")
    map_record.note_failed("m", 1, Cancelled("it was cancelled"))
    with pytest.raises(Cancelled):
        map_record.note_begun("m", 1, "run-1")
    map_record.note_cancelled("m")
    with pytest.raises(Cancelled):
        map_record.note_begun("m", 2, "run-2")
    assert map_record.find_map("m").left() == []


def test_half_a_line_of_a_killed_process_costs_no_other_line(tmp_path):
    map_record.record_map("m", "f", "local", ["1", "2"])
    with (tmp_path / "home" / "cache" / "maps" / "m.jsonl").open("a") as file:
        file.write('{"index": 0, "ru')
    map_record.note_begun("m", 1, "run-1")
    assert map_record.find_map("m").runs == {1: "run-1"}
