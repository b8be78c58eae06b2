"""What sbatch is told."""

from __future__ import annotations

from typing import Any

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm.dialect import SLURM
from slurm_ray_flow.core.slurm.request import escaped_path, sbatch_arguments
from slurm_ray_flow.remote.scheduler.commands import job_id_in, variables

RULES = SLURM.rules.of(JobRequest("train.1"))
ALWAYS = ["--parsable", "--nodes=1", "--ntasks-per-node=1", "--no-requeue", "--open-mode=append"]


def arguments(**wanted: Any) -> list[str]:
    return sbatch_arguments(JobRequest("train.1", **wanted))


def test_a_job_that_asks_for_nothing_takes_the_defaults_of_the_partition() -> None:
    assert sorted(arguments()) == sorted([*ALWAYS, "--job-name=train.1"])


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        ({"nodes": 2}, ["--nodes=2", "--no-kill"]),
        ({"cpus_per_node": 16}, ["--cpus-per-task=16"]),
        ({"gpus_per_node": 2}, ["--gres=gpu:2"]),
        ({"memory": 64 * 1024**3}, ["--mem=65536M"]),
        ({"memory": 1024**2 + 1}, ["--mem=2M"]),
        ({"time_limit": 7200.0}, ["--time=120"]),
        ({"time_limit": 61}, ["--time=2"]),
        ({"time_limit": 0.5}, ["--time=1"]),
        ({"partition": "cpu,gpu", "account": "a", "qos": "q"}, ["--partition=cpu,gpu", "--account=a", "--qos=q"]),
        ({"constraint": "a&b|c"}, ["--constraint=a&b|c"]),
        ({"reservation": "r", "exclude": "c[1-2]"}, ["--reservation=r", "--exclude=c[1-2]"]),
        ({"output": "/r/log 100%.txt"}, ["--output=/r/log 100%%.txt", "--error=/r/log 100%%.txt"]),
        ({"chdir": "/home/a b"}, ["--chdir=/home/a b"]),
        ({"warn_seconds": 90}, ["--signal=B:USR1@90"]),
        ({"warn_seconds": 10**6}, ["--signal=B:USR1@65535"]),
        ({"extra": ("--mail-type=END", "-w c1", "--exclusive")}, ["--mail-type=END", "-w", "c1", "--exclusive"]),
    ],
)
def test_what_a_job_asks_for_is_one_option_each(wanted: dict[str, Any], options: list[str]) -> None:
    assert set(options) <= set(arguments(**wanted))


def test_a_name_with_a_sign_of_the_shell_stays_one_argument() -> None:
    assert "--job-name=$(reboot); a|b" in sbatch_arguments(JobRequest("$(reboot); a|b"))


def test_extra_options_come_last() -> None:
    assert arguments(partition="cpu", extra=("--comment=x",))[-1] == "--comment=x"


@pytest.mark.parametrize(
    ("extra", "gpus", "gres"),
    [
        (("--gres=tmp:10G",), 2, "--gres=gpu:2,tmp:10G"),
        (("--gres=gpu:a100:2",), 2, "--gres=gpu:a100:2"),
        (("--gres=gpu:a100:2,tmp:1G", "--gres=disk"), 2, "--gres=gpu:a100:2,tmp:1G,disk"),
        (("--gres=tmp:10G",), 0, "--gres=tmp:10G"),
    ],
)
def test_sbatch_hears_one_gres_with_all_that_was_asked_for(extra: tuple[str, ...], gpus: int, gres: str) -> None:
    found = [option for option in arguments(extra=extra, gpus_per_node=gpus) if option.startswith("--gres")]
    assert found == [gres]


def test_a_kind_of_gpu_in_another_number_is_refused() -> None:
    with pytest.raises(OptionError, match="gpus_per_node=1"):
        arguments(gpus_per_node=1, extra=("--gres=gpu:a100:2",))


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--nodes=2", "nodes="),
        ("-N2", "nodes="),
        ("--mem-per-cpu=2G", "memory="),
        ("--gpus=2", "gpus_per_node="),
        ("--time=1:00", "time_limit="),
        ("-t 60", "time_limit="),
        ("--partition=gpu", "partition="),
        ("--part=gpu", "partition="),
        ("-p gpu", "partition="),
        ("-pgpu", "partition="),
        ("--account=x", "account="),
        ("--job-name=x", "name="),
        ("--export=ALL", "env_vars="),
    ],
)
def test_what_has_an_option_of_its_own_is_refused_with_its_name(option: str, instead: str) -> None:
    with pytest.raises(OptionError) as caught:
        arguments(extra=(option,))
    assert instead in caught.value.advice


@pytest.mark.parametrize(
    "option",
    [
        *("--array=1-3", "--arr=1-3", "-a 1", "--wrap=x", "--output=x", "-o x", "--wait", "-W", "--requeue", "-D /tmp"),
        *("--test-only", "--parsable", "--ntasks=3", "-n 3", "--quiet", "--clusters=all", "--signal=USR2@10"),
    ],
)
def test_what_would_break_a_run_is_refused(option: str) -> None:
    with pytest.raises(OptionError, match="each run sets it itself"):
        arguments(extra=(option,))


@pytest.mark.parametrize("option", ["", "x", "gres=gpu:1", "--Mail=x", "-", "--", "- w", ": --nodes=1", "--a b"])
def test_what_is_no_option_is_refused_with_an_example(option: str) -> None:
    with pytest.raises(OptionError, match="is no option of sbatch") as caught:
        arguments(extra=(option,))
    assert "--mail-type=END" in caught.value.advice


@pytest.mark.parametrize("wanted", [{"extra": ("--comment=a\nb",)}, {"partition": "a\x1b[2J"}, {"output": "/a\0b"}])
def test_a_control_character_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="control character"):
        arguments(**wanted)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *((name, False) for name in ("SBATCH_CONSTRAINT", "SBATCH_NO_KILL", "SBATCH_WAIT", "SBATCH_EXPORT")),
        *((name, False) for name in ("SLURM_HOSTFILE", "SLURM_JOB_ID", "SLURM_EXPORT_ENV", "SRUN_CPUS_PER_TASK")),
        *((name, True) for name in ("SLURM_CONF", "SLURM_JWT", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "PATH")),
    ],
)
def test_variables_that_would_change_the_job_are_dropped(name: str, counts: bool) -> None:
    assert (name in variables({name: "1"}, RULES)) is counts


# Each right side was tried: a job with this --output wrote to the file on the left side.
@pytest.mark.parametrize(
    ("path", "written"),
    [("/a/b c.txt", "/a/b c.txt"), ("/a/100%j", "/a/100%%j"), ("/a/b\\c", "/a/b\\\\c"), ("/a\\b/%%x", "/a\\\\b/%%x")],
)
def test_a_path_is_escaped_as_slurm_reads_it(path: str, written: str) -> None:
    assert escaped_path(path) == written


@pytest.mark.parametrize(
    ("printed", "job"),
    [
        ("42\n", "42"),
        ("42;cluster2\n", "42"),
        ("Submitted batch job 42\n", "42"),
        ("Submitted batch job 42 on cluster x\n", "42"),
        ("Welcome!\nyour quota is 12 %\n17\n  \n", "17"),
        ("3\n17\n", "17"),
        (
            "** Cluster of the University **\n\nSubmitted batch job 31 on cluster ceo\nBye, see you in 2027\n2027\n",
            "31",
        ),
        ("\x1b[32mSubmitted batch job 31\x1b[0m\n", "31"),
        ("INFO: Submitted batch job 31 (partition cpu)\n", "31"),
        ("", ""),
        ("sbatch: error: no 17 for you\n", ""),
    ],
)
def test_the_id_is_found_among_what_a_site_prints(printed: str, job: str) -> None:
    assert job_id_in(printed, RULES) == job
