"""What a head knows of the job that it runs in, and of a scheduler that says little."""

import os
from types import SimpleNamespace

import pytest

from slurm_ray_flow.remote.scheduler.contexts import context_of, job_here
from slurm_ray_flow.remote.scheduler.job import MARGIN, JobContext, NoJob
from slurm_ray_flow.remote.scheduler.slurm_job import SlurmJob

SPEC = {"scheduler": {"name": "f"}, "cpus": None, "memory": None, "time_limit": None}


@pytest.fixture
def slurm_job(monkeypatch):
    variables = {"JOB_ID": "7", "CPUS_ON_NODE": "4", "MEM_PER_CPU": "100", "JOB_PARTITION": "cpu"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.fixture
def no_job(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_a_job_is_known_by_its_variables_and_only_to_runs_that_a_scheduler_has_started(slurm_job):
    assert isinstance(context_of(SPEC), SlurmJob)
    assert isinstance(context_of({**SPEC, "scheduler": None}), NoJob)
    described = job_here().described()
    assert (described["job"], described["partition"]) == ("7", "cpu")


def test_outside_of_a_job_nothing_is_added_and_nobody_is_asked(no_job):
    job = context_of(SPEC)
    assert job.with_share(SPEC) is SPEC
    assert job.described() == {}
    assert job.others() == []
    assert job.why_ended(SimpleNamespace(), "SIGTERM")[0] == "cancelled"


def test_what_the_user_left_to_slurm_is_the_jobs_share(slurm_job):
    share = context_of(SPEC).with_share({**SPEC, "time_limit": 90.0, "keep_warm": 10.0})
    assert (share["cpus"], share["memory"]) == (4, 400 << 20)
    assert (share["time_limit"], share["lasts"]) == (90.0, 120.0 - MARGIN)


def test_a_scheduler_that_says_little_leaves_what_is_not_known():
    class Toy(JobContext):
        def remaining(self):
            return 50.0

    share = Toy().with_share({**SPEC, "cpus": 2})
    assert (share["cpus"], share["memory"], share["object_store_memory"]) == (2, None, None)
    assert share["time_limit"] == share["lasts"] == 50.0 - MARGIN
    assert Toy().with_share({**SPEC, "time_limit": 90.0})["lasts"] == 90.0 - MARGIN
