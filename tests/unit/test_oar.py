"""OAR's answers as recorded from OAR 2.5.9 (tests/recorded/oar), and the commands that its dialect makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slurm_ray_flow import OptionError, Rejected
from slurm_ray_flow.core.oar import site
from slurm_ray_flow.core.oar.dialect import OAR, OarJob, parse_queue
from slurm_ray_flow.core.scheduler import JobRequest, end_of_job, goes_on
from slurm_ray_flow.remote.scheduler.commands import job_id_in

RECORDED = Path(__file__).parents[1] / "recorded" / "oar" / "2.5.9"
ANSWER = re.compile(
    r"^\$ (?P<command>.*)\n(?P<out>(?:(?!\$ |\(stderr\)|\(exit).*\n)*)(?:\(stderr\)\n(?P<err>(?:(?!\(exit).*\n)*))?",
    re.MULTILINE,
)
LEFT = {"words": "", "cancelled": False, "submitted": True, "job": "3", "name": "train.r1"}
BEGAN = [{"event": "allocated", "node": "o1"}]


def answers(name: str, command: str) -> list[tuple[str, str]]:
    """What each such command of a session printed, to stdout and to stderr."""
    text = (RECORDED / f"{name}.txt").read_text(encoding="utf-8")
    return [(match["out"], match["err"] or "") for match in ANSWER.finditer(text) if command in match["command"]]


def last_job(name: str, number: int) -> OarJob:
    """The last that a session shows of a job."""
    out, _ = answers(name, f"oarstat -f -J -j {number}")[-1]
    return parse_queue(out)[str(number)]


def test_a_waiting_job_has_its_predicted_start_and_a_running_one_its_nodes() -> None:
    waits = parse_queue(answers("states-normal", "oarstat -f -J -j 2")[0][0])["2"]
    assert (waits.group, waits.submitted, waits.limit, waits.partition) == ("waiting", 1795926932.0, 600.0, "default")
    assert waits.start == 1795926934.0
    assert waits.used is None
    ended = last_job("states-normal", 2)
    assert (ended.group, ended.nodelist, ended.nodes, ended.exit_status) == ("ended", "o1 o2", 2, 768)


def test_no_jobs_are_no_answer_and_a_damaged_one_breaks_nothing() -> None:
    assert parse_queue("") == {}
    assert parse_queue('{"3" : {"Job_Id"') == {}


@pytest.mark.parametrize(
    ("name", "number", "cause", "said"),
    [
        ("walltime", 3, "time_limit", "its walltime passed (job 3 on o1: Error)"),
        ("oardel", 4, "cancelled", "User alice requested to frag the job 4"),
        ("launch-dir-missing", 5, "environment", "Cannot go into the working directory /nosuch"),
        ("states-normal", 2, "lost", "exit code 3"),
        ("exitcodes", 16, "lost", "ended by signal 9"),
    ],
)
def test_the_events_of_a_job_tell_why_it_ended(name: str, number: int, cause: str, said: str) -> None:
    job = last_job(name, number)
    found, message = OAR.cause_of_end(job, "", began=cause != "environment")
    assert found == cause
    assert said in message


def test_a_preempted_job_that_oar_submits_again_is_the_same_run() -> None:
    out, _ = answers("besteffort", "oarstat -f -J -j 25")[-1]
    first = parse_queue(out)["25"]
    assert first.cause == "preempted"
    again = OarJob(job_id="28", name=first.name, state="Waiting")
    assert list(parse_queue(_as_json(28, 25))) == ["25", "28"]  # the newest counts, whatever the order of the answer
    assert goes_on(OAR, again, [])
    assert not goes_on(OAR, again, BEGAN)  # a program does not begin twice
    assert end_of_job(OAR, again, None, LEFT, BEGAN)[0] == "preempted"


def _as_json(*numbers: int) -> str:
    return "{" + ",".join(f'"{number}": {{"Job_Id": {number}, "state": "Waiting"}}' for number in numbers) + "}"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (OarJob("7", "t.r", "Waiting", partition="default", start=4000.0), "OAR expects it to start at"),
        (OarJob("7", "t.r", "Waiting", partition="default"), "waits for free resources in queue default"),
        (OarJob("7", "t.r", "Hold"), "oarresume"),
        (OarJob("7", "t.r", "toLaunch"), "waits for its nodes to be prepared"),
        (
            OarJob("7", "t.r", "Waiting", "Cannot determine scheduling time due to dependency with the job 999"),
            "due to dependency with the job 999",
        ),
    ],
)
def test_a_wait_is_explained(job: OarJob, line: str) -> None:
    assert line in OAR.explain(job, [], 1000.0)


def test_the_command_that_submits() -> None:
    request = JobRequest(
        name="train.r1", nodes=2, cpus_per_node=16, time_limit=5400.5, partition="default", account="physics",
        constraint="memnode > 64", output="/home/a/my log", chdir="/home/a", warn_seconds=60, extra=("-t idempotent",),
    )  # fmt: skip
    assert OAR.submit_command(request) == [
        *("oarsub", "-n", "train.r1", "-l", "/nodes=2/core=16,walltime=1:30:01", "-q", "default"),
        *("--project", "physics", "-p", "memnode > 64", "--checkpoint", "60", "--signal", "10"),
        *("-O", "/dev/null", "-E", "/dev/null", "-t", "idempotent"),
    ]
    assert OAR.rules.of(request)["command_text"] == "cd /home/a && exec >>'/home/a/my log' 2>&1 /bin/sh"
    assert OAR.submit_command(JobRequest(name="a", partition="besteffort"))[5:7] == ["-t", "besteffort"]
    gpus = OAR.submit_command(JobRequest(name="a", gpus_per_node=2, cpus_per_node=5))
    assert "/nodes=1/gpu=2/core=3" in gpus


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"memory": 1 << 30}, "memory="),
        ({"qos": "long"}, "qos="),
        ({"extra": ("-l nodes=3",)}, "cpus_per_node="),
        ({"extra": ("--array 3",)}, "each run sets it itself"),
        ({"extra": ("nonsense",)}, "no option of oarsub"),
        ({"constraint": "a\nb"}, "control character"),
    ],
)
def test_what_oar_does_not_have_is_refused_before_a_submission(fields: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        OAR.submit_command(JobRequest(name="a", **fields))  # type: ignore[arg-type]


def test_a_negative_id_is_a_refusal_and_a_job_that_could_not_be_announced_has_its_id() -> None:
    rules = OAR.rules.of(JobRequest(name="a"))
    assert job_id_in(answers("oarsub-refused", "nodes=5")[0][0], rules) == ""
    assert job_id_in(answers("oarsub-json", "oarsub -J")[0][0], rules) == "6"
    out, error = answers("server-down", "oarsub -n lost")[0]
    assert job_id_in(out, rules) == "138"
    assert OAR.answer_unknown(error)


@pytest.mark.parametrize(
    ("command", "said", "advice"),
    [
        ("nodes=5", "There are not enough resources for your request", "fewer nodes="),
        ("gpu=1", 'column "gpu" does not exist', "constraint="),
        ("-q nosuch", "The queue nosuch does not exist", "partition="),
        ("-q admin", "Only member of the group admin", "partition="),
        ("-t nosuch", "unknown job type: nosuch", "types"),
    ],
)
def test_a_refusal_has_oars_own_words_and_says_what_to_do(command: str, said: str, advice: str) -> None:
    error = OAR.rejected(answers("oarsub-refused", command)[0][1], "gricad")
    assert said in error.what
    assert "LINE 1" not in error.what
    assert advice in error.advice


def test_a_site_is_its_nodes_with_what_jobs_hold_of_them() -> None:
    nodes, _ = answers("oarnodes", "oarnodes -J")[0]
    jobs = '{"7": {"state": "Running", "assigned_resources": [1, 2, 5]}, "8": {"state": "Waiting"}}'
    found = site.parse_site(nodes, jobs, "OAR version : 2.5.9 (Canicule)")
    assert found.version == "2.5.9"
    assert [(node.name, node.state, node.cores, node.taken) for node in found.nodes] == [
        ("o1", "Alive", 4, 2),
        ("o2", "Alive", 4, 1),
    ]
    load = site.load(found, "")
    assert (load.cpus, load.busy) == (8, 3)
    for request, said in (
        (JobRequest("a", cpus_per_node=9), "more than a node has: 4"),
        (JobRequest("a", nodes=3, cpus_per_node=4), "more than the site has of such nodes: 2"),
        (JobRequest("a", gpus_per_node=1), "more than a node has: none"),
    ):
        with pytest.raises(Rejected, match=said):
            site.check(request, found)
    site.check(JobRequest("a", nodes=2, cpus_per_node=4), found)
    assert site.finding(found, JobRequest("a")).state == "ok"
    assert site.node_table(found).rows[0][:4] == ["2", "4", "", "37 % of cores taken, 2 alive"]
