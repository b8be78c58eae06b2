"""What squeue answers, and what the end of a job means."""

from __future__ import annotations

import pytest

from slurm_ray_flow.core.errors import CAUSES
from slurm_ray_flow.core.slurm.queue import (
    SlurmJob,
    cause_of,
    full_state,
    group_of,
    parse_queue,
    pending_command,
    queue_command,
)
from slurm_ray_flow.core.slurm.waiting import explain
from slurm_recorded import REAL, REALS, recorded

# By the names of the jobs that tests/recorded/slurm/record.py made: state, group, cause.
REAL_ENDS = {
    "completes.now": ("COMPLETED", "ended", "lost"),
    "fails.now": ("FAILED", "ended", "lost"),
    "two nodes|x": ("COMPLETED", "ended", "lost"),
    "no.output": ("FAILED", "ended", "environment"),
    "out-of.memory": ("FAILED", "ended", "lost"),  # a step was out of memory: the queue does not say so
    "out-of.memory-batch": ("OUT_OF_MEMORY", "ended", "out_of_memory"),
    "is.cancelled": ("CANCELLED", "ended", "cancelled"),
    "is.preempted": ("PREEMPTED", "ended", "preempted"),
    "loses.its-node": ("NODE_FAIL", "ended", "node_failed"),
    "times.out": ("TIMEOUT", "ended", "time_limit"),
    "sbatch": ("FAILED", "ended", "rejected"),
    "waits.closed": ("CANCELLED", "ended", "cancelled"),
}


# The other versions had no limits of memory, and their answer about refused jobs is another.
ONLY_REAL = {"out-of.memory", "out-of.memory-batch", "sbatch"}
OTHERWISE = {("20.11.4", "no.output"): ("FAILED", "ended", "lost")}


@pytest.mark.parametrize("version", REALS)
@pytest.mark.parametrize("name", REAL_ENDS)
def test_every_end_of_a_job_is_told_from_the_queue(name: str, version: str) -> None:
    jobs = {job.name: job for job in parse_queue(recorded("squeue-ended", version)).values()}
    if version == REAL or name not in ONLY_REAL:
        found = jobs[name]
        assert (found.state, found.group, found.cause) == OTHERWISE.get((version, name), REAL_ENDS[name])


@pytest.mark.parametrize("version", REALS)
def test_a_job_that_sbatch_refused_is_there_all_the_same_and_known_as_refused(version: str) -> None:
    refused = [job for job in parse_queue(recorded("squeue-waiting", version)).values() if job.cause == "rejected"]
    assert len(refused) >= 2
    assert {(job.name, job.state) for job in refused} == {("sbatch", "FAILED")}


@pytest.mark.parametrize("version", ["20.11.4", "24.11.5", "26.05.5"])
def test_a_site_that_enforces_no_limits_lets_jobs_wait_that_can_never_start(version: str) -> None:
    jobs = [job for job in parse_queue(recorded("squeue-waiting", version)).values() if job.group == "waiting"]
    in_vain = [job for job in jobs if job.name in {"sbatch", "waits.too-many"}]
    assert len(in_vain) >= 3
    assert all(explain(job.reason).hopeless for job in in_vain)


def test_a_job_that_runs_has_all_that_the_queue_says() -> None:
    jobs = {job.name: job for job in parse_queue(recorded("squeue-waiting")).values()}
    assert jobs["runs"] == SlurmJob(
        job_id="15",
        name="runs",
        state="RUNNING",
        partition="cpu",
        nodes=2,
        nodelist="c[1-2]",
        priority=4294901747,
        start=1795290058.0,
        end=1795291258.0,
        used=0.0,
        limit=1200.0,
        submitted=1795290057.0,
    )
    assert (jobs["runs"].group, jobs["runs"].cause) == ("running", None)


def test_a_job_that_waits_has_its_reason_and_the_start_that_is_expected() -> None:
    jobs = {job.name: job for job in parse_queue(recorded("squeue-waiting")).values()}
    waiting = {job.name: job.reason for job in jobs.values() if job.group == "waiting"}
    assert waiting == {
        "waits.resources": "",
        "waits.priority": "Priority",
        "waits.closed": "PartitionDown",
        "waits.begin": "BeginTime",
        "waits.held": "JobHeldUser",
        "waits.admin": "JobHeldAdmin",
        "waits.dependency": "Dependency",
        "waits.drained": "ReqNodeNotAvail, UnavailableNodes:c2",
    }
    assert (jobs["waits.resources"].start, jobs["waits.closed"].start) == (1795291258.0, None)


def test_other_versions_arrays_and_noise() -> None:
    jobs = parse_queue(recorded("squeue", "composed/20.11"))
    assert list(jobs) == ["501", "503_[5-9%2]", "503_4", "600+1", "601"]
    assert (jobs["600+1"].nodes, jobs["600+1"].limit, jobs["600+1"].partition) == (1228, 172800.0, "batch,long")
    assert (jobs["601"].group, jobs["601"].limit) == ("running", float("inf"))


def test_held_and_staged_jobs() -> None:
    jobs = parse_queue(recorded("squeue", "composed/23.02"))
    assert [job.group for job in jobs.values()] == ["waiting"] * 4 + ["running", "waiting"]


def test_a_state_that_nobody_knows_is_nobodys_end_and_more_columns_do_no_harm() -> None:
    jobs = parse_queue(recorded("squeue", "composed/25.05"))
    assert [job.group for job in jobs.values()] == ["waiting", "unknown", "waiting", "waiting"]
    assert [job.cause for job in jobs.values()] == [None] * 4
    assert jobs["903"].name == "a.4"


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", recorded("squeue-no-controller"), "Welcome!\n|||||||||||||\n", "JOBID\x1fNAME\n", "a\x1f" * 13 + "\n"],
)
def test_what_is_no_job_is_left_out(text: str) -> None:
    assert parse_queue(text) == {}


def test_the_question_is_one_for_all_jobs_and_nothing_in_the_users_environment_changes_it() -> None:
    command = queue_command("alice")
    assert {"--states=all", "--user=alice", "--noheader", "SLURM_TIME_FORMAT=%s", "SQUEUE_PARTITION"} <= set(command)
    assert not any(part.startswith(("--json", "--jobs")) for part in command)
    assert "--partition=cpu,gpu" in pending_command("cpu,gpu")


@pytest.mark.parametrize(
    ("written", "state"),
    [
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("R", "RUNNING"),
        ("oom", "OUT_OF_MEMORY"),
        ("", ""),
    ],
)
def test_states_in_other_spellings(written: str, state: str) -> None:
    assert full_state(written) == state


@pytest.mark.parametrize(
    ("state", "reason", "exit_code", "cause"),
    [
        ("RUNNING", "", "", None),
        ("PENDING", "InvalidAccount", "", None),
        ("COMPLETED", "", "0:0", "lost"),
        ("FAILED", "NonZeroExitCode", "1:0", "lost"),
        ("FAILED", "", "0:125", "out_of_memory"),
        ("FAILED", "", "0:53", "environment"),
        ("FAILED", "OutOfMemory", "", "out_of_memory"),
        ("FAILED", "NodeDown", "", "node_failed"),
        ("FAILED", "SystemFailure", "", "node_failed"),
        ("DEADLINE", "", "", "time_limit"),
        ("BOOT_FAIL", "", "", "node_failed"),
        ("REVOKED", "", "", "cancelled"),
        ("SOMETHING_NEW", "", "", None),
    ],
)
def test_a_cause_from_state_reason_and_exit_code(state: str, reason: str, exit_code: str, cause: str | None) -> None:
    assert cause_of(state, reason, exit_code) == cause
    assert cause is None or cause in CAUSES
    assert (group_of(state) == "ended") == (cause is not None)
