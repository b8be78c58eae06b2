"""A file system without locks, as Lustre without `flock`: what takes a lock goes on without."""

import errno
import fcntl
import os

import pytest

from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm.dialect import SLURM
from slurm_ray_flow.remote.scheduler import commands, warm
from slurm_ray_flow.remote.shared import events
from slurm_ray_flow.remote.shared.events import RunFiles


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def run(request, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    return RunFiles(str(tmp_path), "one")


def test_a_run_has_one_head(run, monkeypatch):
    monkeypatch.setattr(events, "CLAIM_SECONDS", 0.1)
    assert events.claim(run)
    with pytest.raises(TimeoutError):
        events.claim(run)
    run.record("allocated", pid=1)
    assert not events.claim(run)


def test_a_job_is_submitted_and_the_queue_is_asked(run):
    command, rules = ["sh", "-c", "echo Submitted batch job 7"], SLURM.rules.of(JobRequest("f.one"))
    answer = commands.submit(run.root, run.id, command, "f.one", rules)
    assert answer["job"] == "7"
    assert commands.query(run.root, "queue", ["echo", "here"], 0.0)["text"] == "here\n"


def test_a_warm_allocation_is_offered_and_joined(run, tmp_path):
    inbox = tmp_path / "runs" / "one" / "inbox"
    inbox.mkdir()
    assert warm.join_or_offer(run.root, f"{run.root}/warm/some", "one") is None
    run.record("allocated", pid=1)
    assert warm.join_or_offer(run.root, f"{run.root}/warm/some", "two") == "one"
    assert (inbox / "two").exists()


@pytest.mark.parametrize("left", ["[1]", '{"began": "x", "time": 1, "error": ""}', '{"text": 1}', "\0\0\0"])
def test_a_damaged_answer_of_slurm_is_asked_for_again(tmp_path, left):
    root = str(tmp_path / "root")
    assert commands.query(root, "queue", ["echo", "first"], 60.0)["text"] == "first\n"
    assert commands.query(root, "queue", ["echo", "second"], 60.0)["text"] == "first\n"
    (tmp_path / "root/slurm/queue.json").write_text(left)
    (tmp_path / "root/slurm/lock").write_bytes(bytes(20))
    assert commands.query(root, "queue", ["echo", "again"], 60.0)["text"] == "again\n"
