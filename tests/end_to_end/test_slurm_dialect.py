"""What we tell Slurm is understood by a real one, and what it answers by us."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hosts.host import Host
from hosts.lab import Lab
from hosts.machine import until
from slurm_ray_flow.core.errors import Rejected
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm import accounting, queue, site
from slurm_ray_flow.core.slurm.dialect import SLURM
from slurm_ray_flow.core.slurm.request import rejected, sbatch_command
from slurm_ray_flow.remote.scheduler.commands import job_id_in, variables

USER = "alice"
MIB = 1024**2
RULES = SLURM.rules.of(JobRequest("any"))


@pytest.fixture(name="lab")
def _lab(slurm_lab: Lab) -> Iterator[Lab]:
    yield slurm_lab
    end_jobs(slurm_lab)


def end_jobs(lab: Lab) -> None:
    lab["login"].run(USER, ["scancel", f"--user={USER}"])
    until(lab.slurm.queue_empty, "the queue is empty")


def submit(
    login: Host, request: JobRequest, script: str = "sleep 300", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    kept = variables(dict(env or {}), RULES)
    return login.run(USER, sbatch_command(request), stdin=f"#!/bin/sh\n{script}\n", env=kept, check=False)


def jobs_of(login: Host, env: Mapping[str, str] | None = None) -> dict[str, queue.Job]:
    return queue.parse_queue(login.run(USER, queue.queue_command(USER), env=env).stdout)


def site_of(login: Host) -> site.Site:
    return site.parse_site(**{name: login.run(USER, argv).stdout for name, argv in site.site_commands().items()})


def test_a_job_gets_all_that_it_asks_for(lab: Lab) -> None:
    login = lab["login"]
    request = JobRequest(
        name="all.of-it; $(x) 100%",
        nodes=2,
        cpus_per_node=2,
        gpus_per_node=1,
        memory=100 * MIB + 1,
        time_limit=61,
        partition="gpu,cpu",
        account="physics",
        extra=("--comment=a b", "--exclusive=user", "--gres=gpu:fake:1"),
        output="/home/alice/out 100%j.txt",
        chdir="/home/alice",
        warn_seconds=30,
    )
    done = submit(login, request, "pwd; echo $CUDA_VISIBLE_DEVICES; sleep 300")
    job = lab.slurm.job(job_id_in(done.stdout, RULES))
    assert {
        "JobName": request.name,
        "CPUs/Task": "2",
        "NumTasks": "2",
        "MinMemoryNode": "101M",
        "TimeLimit": "00:02:00",
        "Requeue": "0",
        "Comment": "a b",
        "WorkDir": "/home/alice",
        "TresPerNode": "gres:gpu:fake:1",
    }.items() <= job.items()
    assert job["NumNodes"] in {"2-2", "2"}  # while it waits, once it runs
    until(lambda: login.path("/home/alice/out 100%j.txt").exists(), "the output is where it should be")
    until(lambda: login.path("/home/alice/out 100%j.txt").read_text().split() == ["/home/alice", "0"], "it has run")


def test_the_queue_shows_it_whatever_the_users_variables_say(lab: Lab) -> None:
    login = lab["login"]
    inside = {"SBATCH_ARRAY_INX": "1-3", "SBATCH_WAIT": "1", "SLURM_MEM_PER_CPU": "10", "SLURM_JOB_ID": "1"}
    done = submit(login, JobRequest("in.variables", memory=100 * MIB), env=inside)
    job_id = job_id_in(done.stdout, RULES)
    filters = {
        "SQUEUE_PARTITION": "gpu",
        "SQUEUE_STATES": "PENDING",
        "SQUEUE_NAMES": "x",
        "SLURM_TIME_FORMAT": "relative",
    }
    until(lambda: jobs_of(login, filters)[job_id].group == "running", "it runs")
    job = jobs_of(login, filters)[job_id]
    assert (job.name, job.partition, job.nodes, job.limit) == ("in.variables", "cpu", 1, 600)
    assert job.start
    assert job.start >= job.submitted
    login.run(USER, ["scancel", job_id])
    until(lambda: jobs_of(login)[job_id].cause == "cancelled", "it was cancelled")
    assert [one.job_id for one in jobs_of(login).values() if one.name == "in.variables"] == [job_id]


def test_who_waits_is_told_by_one_question(lab: Lab) -> None:
    login = lab["login"]
    for name in ("first.1", "second.2"):
        assert submit(login, JobRequest(name, nodes=2, memory=3900 * MIB)).returncode == 0
    until(lambda: {"first.1"} == {job.name for job in jobs_of(login).values() if job.group == "running"}, "one runs")
    pending = queue.parse_queue(login.run("bob", queue.pending_command("cpu,gpu")).stdout)
    assert [job.name for job in pending.values()] == ["second.2"]


WANTED: list[dict[str, Any]] = [
    {},
    {"nodes": 2, "cpus_per_node": 4, "memory": 4000 * MIB, "gpus_per_node": 2, "time_limit": 3600},
    {"partition": "short", "time_limit": 120},
    {"partition": "spare,gpu"},
    {"partition": "nowhere"},
    {"nodes": 3},
    {"partition": "short", "nodes": 2},
    {"cpus_per_node": 5},
    {"memory": 4001 * MIB},
    {"gpus_per_node": 3},
    {"time_limit": 3601},
    {"partition": "short", "time_limit": 180},
    {"constraint": "skylake"},
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_the_check_before_a_submission_says_what_slurm_would_say(lab: Lab, wanted: dict[str, Any]) -> None:
    done = submit(lab["login"], JobRequest("check.1", **wanted), "true")
    try:
        site.check(JobRequest("check.1", **wanted), site_of(lab["login"]))
    except Rejected as error:
        assert done.returncode != 0, f"Slurm took it: {error}"
        assert "sbatch failed" not in str(rejected(done.stderr))
    else:
        assert job_id_in(done.stdout, RULES), done.stderr


def test_a_partition_that_is_down_is_known(lab: Lab) -> None:
    with pytest.raises(Rejected, match="starts no jobs now"):
        site.check(JobRequest("x", partition="closed"), site_of(lab["login"]))


def test_a_site_is_seen_as_it_is(lab: Lab) -> None:
    found = site_of(lab["login"])
    cpu = found.partitions["cpu"]
    assert (cpu.default, cpu.nodes, cpu.cpus_per_node, cpu.gpus_per_node, cpu.max_time) == (True, 2, 4, 2, 3600)
    assert found.version
    assert found.groups == {"alice"}
    assert submit(lab["login"], JobRequest("x", cpus_per_node=4, gpus_per_node=1)).returncode == 0
    until(lambda: site_of(lab["login"]).partitions["cpu"].load == 0.5, "half of the processors are taken")
    assert sum(kind.gpus_used for kind in site_of(lab["login"]).partitions["cpu"].kinds) == 1


def test_the_accounts_tell_how_a_job_ended_and_what_it_used(accounting_lab: Lab) -> None:
    login = accounting_lab["login"]
    spin = "end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done"
    job_id = job_id_in(submit(login, JobRequest("spins.1", memory=200 * MIB), f"{spin}; exit 7").stdout, RULES)
    until(lambda: jobs_of(login)[job_id].group == "ended", "it has ended")

    def records(*names: str) -> dict[str, accounting.AccountingRecord]:
        return accounting.parse_accounting(login.run(USER, accounting.accounting_command(USER, names)).stdout)

    until(lambda: records("spins.1").get(job_id) is not None and records("spins.1")[job_id].cause is not None, "sacct")
    record = records("spins.1")[job_id]
    assert (record.name, record.state, record.exit_code, record.cause) == ("spins.1", "FAILED", "7:0", "lost")
    assert (record.memory, record.cpus, record.nodelist) == (200 * MIB, 1, "c1")
    assert record.cpu_seconds
    assert record.max_memory
    assert records()[job_id].state == "FAILED"
