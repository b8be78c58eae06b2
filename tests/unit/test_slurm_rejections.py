"""What sbatch says when it gives no job id."""

from __future__ import annotations

import pytest

from slurm_ray_flow.core.errors import Rejected
from slurm_ray_flow.core.slurm.request import answer_unknown, is_transient, rejected, words
from slurm_recorded import REAL, REALS, recorded

NO_NODE = "Requested node configuration is not available"
# The recorded answer, its words, and a part of the advice.
REFUSED = {
    "partition": ("invalid partition specified: nowhere; Invalid partition name specified", "srf clusters"),
    "memory": (
        "Memory specification can not be satisfied; Requested node configuration is not available",
        "less memory",
    ),
    "gpus": ("Requested node configuration is not available", "no node has this many CPUs, GPUs or memory"),
    "gres": ("Invalid generic resource (gres) specification", "partition with GPUs"),
    "constraint": ("Invalid feature specification", "constraint="),
    "reservation": ("Requested reservation is invalid", "reservation="),
    "option": ("unrecognized option '--bogus=1'", "extra options"),
    "time": ("Invalid --time specification", ""),
    "too-long": ("Requested time limit is invalid (missing or exceeds some limit)", "less time_limit="),
    "too-many": ("Node count specification invalid", "fewer nodes="),
    "too-wide": ("More processors requested than permitted", "fewer cpus_per_node="),
    "node": ("Invalid node name specified", ""),
}


# Without EnforcePartLimits the other versions take what is too long or too many; two also take what is too wide.
TAKEN = {("20.11.4", "too-wide"), ("26.05.5", "too-wide")}
TAKEN |= {(version, name) for version in REALS for name in ("too-long", "too-many")}
OTHERWISE = {("24.11.5", "too-wide"): (f"CPU count per node can not be satisfied; {NO_NODE}", "fewer cpus_per_node=")}
SAID = [(version, name) for version in REALS for name in REFUSED if version == REAL or (version, name) not in TAKEN]


@pytest.mark.parametrize(("version", "name"), SAID)
def test_a_refusal_has_sbatchs_own_words_and_advice(version: str, name: str) -> None:
    said, advice = OTHERWISE.get((version, name), REFUSED[name])
    error = rejected(recorded(f"sbatch-{name}", version), where="desi")
    assert isinstance(error, Rejected)
    assert error.what == f"Slurm refused the job: {said}"
    assert advice in error.advice
    assert error.where == "desi"
    assert not is_transient(recorded(f"sbatch-{name}", version))


# As sites' public documentation and trackers quote them.
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("lines", "said", "advice"),
    [
        (["Batch job submission failed: Invalid account or account/partition combination specified"], "", "account="),
        (
            ["AssocMaxSubmitJobLimit", f"Batch job submission failed: {POLICY}"],
            f"AssocMaxSubmitJobLimit; {POLICY}",
            "wait",
        ),
        (["QOSMaxWallDurationPerJobLimit", f"Batch job submission failed: {POLICY}"], "", "less time_limit="),
        (["QOSMaxMemoryPerJob", f"Batch job submission failed: {POLICY}"], "", "less memory="),
        (["QOSMaxGRESPerUser", f"Batch job submission failed: {POLICY}"], "", "gpus_per_node="),
        ([f"Batch job submission failed: {POLICY}"], POLICY, "another qos="),
        (["Batch job submission failed: Invalid qos specification"], "", "qos="),
        (["Batch job submission failed: I/O error writing script/environment to file"], "", "disk may be full"),
        (["Batch job submission failed: User's group not permitted to use this partition"], "", "access"),
        (
            ["Batch job submission failed: Required partition not available (inactive or drain)"],
            "",
            "another partition",
        ),
        (["You must specify an account!", "Batch job submission failed: Unspecified error"], "", "account="),
        (["Unable to open file /home/a/run.sh: Disk quota exceeded"], "", "srf clean"),
    ],
)
def test_refusals_that_sites_document(lines: list[str], said: str, advice: str) -> None:
    stderr = "".join(f"sbatch: error: {line}\n" for line in lines)
    error = rejected(stderr)
    assert said in error.what
    assert advice in error.advice
    assert not is_transient(stderr)


def test_what_a_site_and_a_shell_say_around_it_is_left_out() -> None:
    stderr = (
        "bash: warning: setlocale: LC_ALL\nsbatch: Checking your quota...\n"
        "sbatch: error: Batch job submission failed: Invalid qos specification\n\n"
    )
    assert words(stderr) == "Invalid qos specification"


def test_a_plugin_of_the_site_that_alone_speaks_is_heard() -> None:
    assert words("sbatch: lua: jobs need --time\nsbatch: see our wiki\n") == "lua: jobs need --time; see our wiki"
    assert words("/usr/bin/sbatch: line 3: module: not found\n") == "line 3: module: not found"


@pytest.mark.parametrize("stderr", ["", "\n  \n"])
def test_silence_is_said_to_be_silence(stderr: str) -> None:
    assert "without a word" in rejected(stderr).what


@pytest.mark.parametrize(
    "stderr",
    [
        *(recorded("sbatch-no-controller", version) for version in REALS),
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: Batch job submission failed: Rate limit exceeded, please retry momentarily",
        "slurm_load_ctl_conf error: Slurm backup controller in standby mode",
        "sbatch: error: Munge encode failed: Failed to access /run/munge/munge.socket.2",
        "sbatch: fatal: Unable to establish configuration source",
    ],
)
def test_a_controller_that_is_away_is_no_refusal(stderr: str) -> None:
    assert is_transient(stderr)
    assert not answer_unknown(stderr)


@pytest.mark.parametrize(
    "stderr",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (receive failure)",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "sbatch: error: Batch job submission failed: Connection timed out reading",
    ],
)
def test_an_answer_that_was_lost_means_that_the_job_may_be_there(stderr: str) -> None:
    assert is_transient(stderr)
    assert answer_unknown(stderr)
