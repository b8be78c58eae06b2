"""Why a job waits, in plain words."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from slurm_ray_flow.core.slurm.queue import SlurmJob, parse_queue
from slurm_ray_flow.core.slurm.waiting import ahead_of, explain, waiting_text
from slurm_recorded import recorded

HOPEFUL = {
    "": "scheduler",
    "None": "scheduler",
    "Priority": "higher priority",
    "Resources": "free nodes",
    "BeginTime": "time to begin",
    "Dependency": "another job",
    "Licenses": "license",
    "Reservation": "reservation",
    "PartitionDown": "opened",
    "Prolog": "prepared",
    "ReqNodeNotAvail, UnavailableNodes:c2": "down, drained or reserved (c2)",
    "ReqNodeNotAvail,_UnavailableNodes:c[1-2]": "(c[1-2])",
    "ReqNodeNotAvail, May be reserved for other job": "reserved",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": "kept for other",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as allowed",
    "QOSMaxCpuPerUserLimit": "you have as many CPUs as allowed",
    "QOSMaxGRESPerUser": "you have as many GPUs",
    "AssocGrpCpuLimit": "its account has as many CPUs as allowed",
    "AssocGrpCPUMinutesLimit": "used up the minutes of CPUs",
    "AssocGrpGRES": "its account has as many GPUs",
    "AssocMaxJobsLimit": "its account has as many jobs",
    "QOSGrpMemLimit": "its QoS has as much memory as allowed",
    "QOSGrpNodeLimit": "its QoS has as many nodes as allowed",
    "MaxCpuPerAccount": "its account has as many CPUs as allowed",
    "JobArrayTaskLimit": "its array",
    "SomethingNobodyKnows": 'with the reason "SomethingNobodyKnows"',
}
HOPELESS = {
    "PartitionTimeLimit": "time limit is more",
    "PartitionNodeLimit": "more nodes",
    "PartitionConfig": "more than the partition has",
    "BadConstraints": "no node is as it asks for",
    "DependencyNeverSatisfied": "never end as it should",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "administrator",
    "InvalidQOS": "QoS is not valid",
    "InvalidAccount": "account is not valid",
    "AccountNotAllowed": "may not use this partition",
    "QOSMaxWallDurationPerJobLimit": "more time than its QoS allows",
    "AssocMaxMemPerJob": "more memory than its account allows",
    "QOSMaxCpuPerNode": "more CPUs",
    "QOSMinCpuNotSatisfied": "fewer CPUs than its QoS wants",
    "launch failed requeued held": "could not start it",
    "launch_failed_requeued_held": "could not start it",
    "job requeued in held state": "held",
    "MaxMemPerLimit": "more memory",
    "ReservationDeleted": "was deleted",
}


@pytest.mark.parametrize("reason", HOPEFUL)
def test_reasons_that_pass_are_explained(reason: str) -> None:
    why = explain(reason)
    assert HOPEFUL[reason] in why.text
    assert not why.hopeless


@pytest.mark.parametrize("reason", HOPELESS)
def test_reasons_that_never_pass_are_explained_with_advice(reason: str) -> None:
    why = explain(reason)
    assert HOPELESS[reason] in why.text
    assert why.hopeless
    assert why.advice


NOW = datetime.datetime(2026, 11, 21, 13, 53).astimezone().timestamp()
VAIN = (
    "waits in vain: its time limit is more than the partition's: it will not start by itself; "
    "cancel it and ask for less; `srf clusters NAME` shows what there is"
)
JOB = SlurmJob("7", "train.1", "PENDING", reason="Resources", partition="cpu", priority=50, start=NOW + 720)
FREE = "waits for free nodes in partition cpu"


@pytest.mark.parametrize(
    ("job", "ahead", "now", "text"),
    [
        (
            JOB,
            3,
            NOW,
            f"{FREE}; 3 jobs are ahead; Slurm expects it to start at 14:05 (in about 10 min)",
        ),
        (JOB, 1, None, f"{FREE}; 1 job is ahead"),
        (JOB, 0, NOW + 721, FREE),
        (
            JOB,
            None,
            NOW + 700,
            f"{FREE}; Slurm expects it to start at 14:05 (in a moment)",
        ),
        (
            dataclasses.replace(JOB, start=NOW + 86400),
            None,
            NOW,
            f"{FREE}; Slurm expects it to start at 2026-11-22 13:53 (in about 24 h)",
        ),
        (
            dataclasses.replace(JOB, reason="", start=None),
            2,
            NOW,
            "waits to be looked at by the scheduler; 2 jobs are ahead",
        ),
        (
            dataclasses.replace(JOB, reason="PartitionTimeLimit"),
            3,
            NOW,
            VAIN,
        ),
    ],
)
def test_one_line_for_people(job: SlurmJob, ahead: int | None, now: float | None, text: str) -> None:
    assert waiting_text(job, ahead, now) == text


def test_who_is_ahead_in_a_real_queue() -> None:
    pending = parse_queue(recorded("squeue-pending-cpu"))
    ahead = {job.name: ahead_of(job, pending.values()) for job in pending.values()}
    assert (ahead["waits.resources"], ahead["waits.priority"], ahead["waits.begin"]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("others", "ahead"),
    [
        ([], 0),
        ([dataclasses.replace(JOB, job_id="6")], 1),
        ([dataclasses.replace(JOB, job_id="8")], 0),
        ([dataclasses.replace(JOB, job_id="8", priority=51)], 1),
        ([dataclasses.replace(JOB, job_id="6", priority=49)], 0),
        ([dataclasses.replace(JOB, job_id="6", partition="gpu")], 0),
        ([dataclasses.replace(JOB, job_id="6", partition="gpu,cpu")], 1),
        ([dataclasses.replace(JOB, job_id="6", reason="PartitionTimeLimit")], 0),
    ],
)
def test_ahead_are_those_of_the_same_partition_that_come_first(others: list[SlurmJob], ahead: int) -> None:
    assert ahead_of(JOB, [JOB, *others]) == ahead


def test_an_answer_without_the_job_says_nothing_about_its_place() -> None:
    assert ahead_of(JOB, [dataclasses.replace(JOB, job_id="6")]) is None
    assert ahead_of(dataclasses.replace(JOB, priority=None), [JOB]) is None
