"""What sacct knows of a job that has ended."""

from __future__ import annotations

import pytest

from slurm_ray_flow.core.slurm.accounting import AccountingRecord, accounting_command, parse_accounting
from slurm_recorded import ACCOUNTED, REAL, recorded

GIB, MIB = 1024**3, 1024**2
# By name: the state and the cause, of the jobs that tests/recorded/slurm/record.py made.
ENDS = {
    "completes.now": ("COMPLETED", "lost"),
    "fails.now": ("FAILED", "lost"),
    "two nodes|x": ("COMPLETED", "lost"),
    "no.output": ("FAILED", "environment"),
    "out-of.memory-batch": ("OUT_OF_MEMORY", "out_of_memory"),
    "is.cancelled": ("CANCELLED", "cancelled"),
    "is.preempted": ("PREEMPTED", "preempted"),
    "loses.its-node": ("NODE_FAIL", "node_failed"),
    "times.out": ("TIMEOUT", "time_limit"),
}


OTHERWISE = {("20.11.4", "no.output"): ("FAILED", "lost")}


@pytest.mark.parametrize("version", ACCOUNTED)
@pytest.mark.parametrize("name", ENDS)
def test_every_end_of_a_job_is_told_from_the_accounts(name: str, version: str) -> None:
    found = {record.name: record for record in parse_accounting(recorded("sacct-all", version)).values()}
    if version == REAL or name != "out-of.memory-batch":  # the others had no limits of memory
        assert (found[name].state, found[name].cause) == OTHERWISE.get((version, name), ENDS[name])


@pytest.mark.parametrize("version", ACCOUNTED)
def test_memory_that_was_asked_for_is_that_of_each_node_in_every_version(version: str) -> None:
    found = {record.name: record for record in parse_accounting(recorded("sacct-all", version)).values()}
    assert (found["is.preempted"].memory, found["two nodes|x"].memory) == (3900 * MIB, 1000 * MIB)


@pytest.mark.parametrize("version", [version for version in ACCOUNTED if version != REAL])
def test_steps_say_what_was_used_in_every_version(version: str) -> None:
    found = {record.name: record for record in parse_accounting(recorded("sacct-steps", version)).values()}
    record = found["out-of.memory"]  # without a limit it took what it wanted
    assert (record.max_memory or 0) > 900 * MIB
    assert 1 < (record.cpu_seconds or 0) < 10


def test_all_that_the_accounts_say_of_a_job() -> None:
    assert parse_accounting(recorded("sacct-all"))["13"] == AccountingRecord(
        job_id="13",
        name="is.preempted",
        state="PREEMPTED",
        partition="spare",
        nodes=2,
        nodelist="c[1-2]",
        priority=4294901749,
        start=1795290034.0,
        end=1795290056.0,
        used=22.0,
        limit=600.0,
        submitted=1795290033.0,
        exit_code="0:0",
        cpus=2,
        memory=3900 * MIB,
    )


def test_a_step_that_was_out_of_memory_is_the_jobs_cause() -> None:
    found = {record.name: record for record in parse_accounting(recorded("sacct-steps")).values()}
    assert (found["out-of.memory"].state, found["out-of.memory"].cause) == ("OUT_OF_MEMORY", "out_of_memory")


def test_steps_say_what_was_used() -> None:
    found = parse_accounting(recorded("sacct-steps"))
    assert (found["8"].cpu_seconds, found["8"].max_memory, found["8"].memory) == (0.015, 3232 * 1024, 1000 * MIB)
    assert len(found) == 3


def test_an_old_slurm_has_the_cpu_time_in_the_steps_alone() -> None:
    found = parse_accounting(recorded("sacct", "composed/20.11"))
    assert (found["501"].cpu_seconds, found["501"].memory, found["501"].max_memory) == (
        14400.502,
        4 * GIB,
        4100000 * 1024,
    )
    assert (found["502"].memory, found["502"].cause) == (8 * GIB, "time_limit")
    assert (found["503_4"].cause, found["504"].cause, found["504"].end) == ("cancelled", None, None)


def test_a_newer_slurm_has_it_in_the_job_and_the_memory_of_all_nodes() -> None:
    record = parse_accounting(recorded("sacct", "composed/21.08"))["700"]
    assert (record.cpu_seconds, record.memory, record.max_memory) == (400, 32 * GIB, 8 * GIB)


def test_a_job_that_was_started_again_counts_with_its_last_start() -> None:
    text = recorded("sacct-all")
    again = next(line for line in text.splitlines() if line.startswith("25\x1f")).replace("NODE_FAIL", "COMPLETED")
    assert parse_accounting(text + again)["25"].state == "COMPLETED"


@pytest.mark.parametrize("text", ["", "\n", "sacct: error: Problem talking to the database\n", "1|x|COMPLETED\n"])
def test_noise_is_no_job(text: str) -> None:
    assert parse_accounting(text) == {}


def test_the_question_is_for_named_jobs_with_steps_or_for_all_without() -> None:
    assert {"--name=a.1,b.2", "--user=alice", "--starttime=now-7days"} <= set(
        accounting_command("alice", ["a.1", "b.2"])
    )
    assert "--allocations" not in accounting_command("alice", ["a.1"])
    assert "--allocations" in accounting_command("alice")
