"""A real Slurm on the test hosts: it takes jobs, limits them, loses nodes, and goes without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hosts import cgroups, faults, slurm_services
from hosts.lab import Lab
from hosts.layout import SLURM
from hosts.machine import LabError, until
from hosts.place import CHECKOUT, Place
from hosts.test_lab import traces

TWO = "srun --nodes=2 hostname"
OWNER = """
import os, sys, time
from hosts.lab import Lab
from hosts.layout import SLURM
Lab.up(sys.argv[1], owner=os.getpid(), kinds=SLURM)
print("up", flush=True)
time.sleep(600)
"""
REACH = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)
"""


@pytest.fixture
def slurm(slurm_lab):
    """The cluster; no job of a test is left on it."""
    yield slurm_lab.slurm
    slurm_lab.slurm.scancel_all()


@pytest.fixture
def purpose():
    """A purpose of this test's own; nothing is left of its lab afterwards."""
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    Lab.find(name) and Lab.find(name).down()


def said(slurm, job):
    path = slurm.job(job)["StdOut"]
    return slurm.login.path(path).read_text()


def runs(host, word):
    return any(word in argv for argv in host.processes().values())


def reaches(host, other, port):
    return host.run("alice", ["python3", "-c", REACH, other, str(port)], check=False).returncode == 0


def test_people_see_it_over_ssh(slurm_lab, ssh):
    shown = ssh(
        "frank@login", "sinfo", "--noheader", "--Node", "--format=%P,%N,%t,%c,%m,%G,%a", config=slurm_lab.ssh_config
    )
    rows = {tuple(line.split(",")) for line in shown.stdout.split()}
    assert ("cpu*", "c1", "idle", "4", "4000", "gpu:fake:2", "up") in rows
    assert {row[0] for row in rows} == {"cpu*", "short", "gpu", "closed", "spare"}
    assert {row[-1] for row in rows if row[0] == "closed"} == {"down"}


def test_a_job_runs_on_two_nodes(slurm_lab, slurm, ssh):
    sent = ssh("alice@login", "sbatch", "--parsable", "-N2", f"--wrap='{TWO}'", config=slurm_lab.ssh_config)
    job = sent.stdout.split()[-1]
    slurm.until_state(job, "COMPLETED")
    assert set(said(slurm, job).split()) == {"c1", "c2"}


def test_homes_are_shared_and_nothing_else(slurm_lab, slurm):
    script = 'srun -N2 sh -c "touch at-$(hostname) /tmp/of-all /dev/shm/of-all"; srun -N2 sh -c "ls ~; ls /tmp"'
    job = slurm.submit("frank", script.replace("$(", r"\$("), "--nodes=2", "--output=/home/frank/shared.txt")
    slurm.until_state(job, "COMPLETED")
    assert {"at-c1", "at-c2", "of-all"} <= set(said(slurm, job).split())
    assert not any(slurm_lab["login"].path(f"{folder}/of-all").exists() for folder in ("/tmp", "/dev/shm"))
    assert len({slurm_lab[node].path("/tmp/of-all").stat().st_ino for node in slurm.nodes}) >= 1
    for node in slurm.nodes.values():
        node.run("root", ["rm", "/tmp/of-all", "/dev/shm/of-all"])


def test_nodes_stand_inside_and_reach_each_other_and_the_login_host_alone(slurm_lab):
    c1 = slurm_lab["c1"]
    assert reaches(c1, "c2", 6818) and reaches(c1, "login", 6817)
    assert not reaches(c1, slurm_lab.home, 3128)
    assert not reaches(c1, slurm_lab["login"].address, 22)
    assert "PROXY" not in c1.run("frank", ["env"]).stdout.upper()


def test_who_takes_more_memory_than_asked_is_ended(slurm):
    assert slurm.memory_limits == bool(cgroups.hierarchies())
    if not slurm.memory_limits:
        pytest.skip("this machine has no memory control groups of the first version")
    job = slurm.submit("alice", "tail /dev/zero", "--mem=50")
    slurm.until_state(job, "OUT_OF_MEMORY")
    assert slurm.job(job)["ExitCode"] == "0:125"


def test_a_job_is_given_gpus(slurm):
    jobs = [
        slurm.submit("alice", "echo $CUDA_VISIBLE_DEVICES; sleep 1", f"--gpus-per-node={n}", "-pgpu") for n in (2, 1)
    ]
    none = slurm.submit("alice", "echo none:$CUDA_VISIBLE_DEVICES")
    for job in (*jobs, none):
        slurm.until_state(job, "COMPLETED")
    assert said(slurm, jobs[0]) == "0,1\n"
    assert said(slurm, jobs[1]) in {"0\n", "1\n"}
    assert said(slurm, none) == "none:\n"


@pytest.mark.parametrize("options", [["-pshort", "--time=10"], ["--mem=5G"], ["-N3"], ["-pshort", "-N2"], ["-pnone"]])
def test_what_no_partition_has_is_refused(slurm, options):
    with pytest.raises(LabError, match="sbatch: error: "):
        slurm.submit("alice", "true", *options)


def test_a_job_of_the_spare_partition_gives_way(slurm):
    slurm.root("scontrol", "update", "PartitionName=spare", "GraceTime=0")
    spare = slurm.submit("alice", "sleep 600", "--partition=spare", "--nodes=2", "--mem=3900")
    slurm.until_state(spare, "RUNNING")
    other = slurm.submit("frank", "true", "--mem=3900", "--output=/home/frank/other.txt")
    slurm.until_state(spare, "PREEMPTED")
    slurm.until_state(other, "COMPLETED")
    slurm.root("scontrol", "update", "PartitionName=spare", "GraceTime=5")


def test_a_drained_node_takes_no_job_until_it_is_resumed(slurm):
    slurm.drain("c1")
    slurm.until(lambda: slurm.states()["c1"] == "drain", "c1 is drained")
    job = slurm.submit("alice", "hostname")
    slurm.until_state(job, "COMPLETED")
    assert said(slurm, job) == "c2\n"
    waits = slurm.submit("alice", "true", "--nodelist=c1")
    slurm.until(lambda: "ReqNodeNotAvail" in slurm.job(waits)["Reason"], "the reason is told")
    slurm.resume("c1")
    slurm.until_state(waits, "COMPLETED")


def test_a_node_is_reserved_for_one(slurm):
    with slurm.reservation("course", "frank", "c1"):
        job = slurm.submit("frank", "hostname", "--reservation=course", "--output=/home/frank/reserved.txt")
        slurm.until_state(job, "COMPLETED")
        assert said(slurm, job) == "c1\n"
        with pytest.raises(LabError, match="reservation"):
            slurm.submit("alice", "true", "--reservation=course")


def test_a_cut_node_is_reached_by_nobody_until_the_cable_is_back(slurm_lab, slurm):
    login, c1 = slurm_lab["login"], slurm_lab["c1"]
    with faults.cut(c1):
        assert not reaches(login, "c1", 6818)
        assert not reaches(c1, "c2", 6818)
        assert reaches(login, "c2", 6818)
    until(lambda: reaches(login, "c1", 6818), "c1 is reached")
    with faults.cut(login, "outside"):
        assert reaches(login, "c1", 6818)


def test_a_node_without_its_daemon_is_down_and_comes_back(slurm_lab, slurm):
    job = slurm.submit("alice", "sleep 4241", "--nodelist=c2", "--no-requeue")
    with slurm.settings("SlurmdTimeout=3", "MessageTimeout=2", restart=True):
        until(lambda: runs(slurm_lab["c2"], "4241"), "the job runs")  # RUNNING is said before
        slurm.kill_slurmd("c2")
        slurm.until_state(job, "NODE_FAIL")
        assert runs(slurm_lab["c2"], "4241")
        assert slurm.states()["c2"] == "down*"
        slurm.start_slurmd("c2")
        slurm.until(lambda: slurm.states()["c2"] == "idle", "c2 is back")
        until(lambda: not runs(slurm_lab["c2"], "4241"), "the job has ended")


@pytest.mark.parametrize("end", ["stop_controller", "kill_controller"])
def test_a_job_outlives_its_controller(slurm, end):
    job = slurm.submit("alice", "sleep 600")
    slurm.until_state(job, "RUNNING")
    slurm.until_written(job)
    getattr(slurm, end)()
    assert not slurm.answers()
    slurm.start_controller()
    assert slurm.state(job) == "RUNNING"


def test_a_controller_that_stands_still_answers_later(slurm_lab, slurm):
    asks = ["timeout", "1", "squeue"]
    with slurm.stuck_controller():
        assert slurm_lab["login"].run("frank", asks, check=False).returncode == 124
    assert slurm.answers()


def test_nothing_of_a_job_lives_longer_than_it(slurm_lab, slurm):
    if not slurm.memory_limits:
        pytest.skip("without control groups Slurm loses sight of who leaves a job's sessions")
    escape = "setsid sleep 4242 > /dev/null 2>&1 &"
    job = slurm.submit("alice", f"srun -N2 sh -c '{escape} sleep 1'; {escape}", "--nodes=2")
    slurm.until_state(job, "COMPLETED")
    slurm.until(slurm.queue_empty, "nothing is completing")
    hosts = [slurm_lab[name] for name in ("login", "c1", "c2")]
    until(lambda: not any(runs(host, "4242") for host in hosts), "all have ended")


def test_who_asked_the_controller_what_is_known(slurm_lab, slurm):
    before, since = len(slurm.queries("erin")), time.time()
    slurm_lab["login"].run("erin", ["squeue"])
    slurm_lab["login"].run("frank", ["squeue"])
    queries = slurm.queries("erin")[before:]
    assert [query.what for query in queries] == ["REQUEST_JOB_INFO", "REQUEST_PARTITION_INFO"]  # what squeue asks
    assert since - 1 < queries[0].time < time.time() + 1
    assert slurm.accounting is False


def test_a_full_disk_is_full_on_all_hosts(slurm_lab, slurm):
    with slurm.small_disk("alice", "/home/alice/small"):
        wrote = slurm_lab["c1"].run(
            "alice", ["dd", "if=/dev/zero", "of=small/file", "bs=64k", "count=100"], check=False
        )
        assert "No space left" in wrote.stderr
        assert slurm_lab["login"].path("/home/alice/small/file").stat().st_size == 2**20
    assert not any(list(host.path("/home/alice/small").iterdir()) for host in slurm_lab.hosts.values())


def test_the_log_says_why_there_are_no_accounts(accounting_lab):
    login = accounting_lab["login"]
    with (
        slurm_services.without(login, "slurmdbd"),
        pytest.raises(LabError, match=r"log's last lines:\n.*\[\d{4}-"),
    ):
        slurm_services.until_it_answers(login)
    slurm_services.until_it_answers(login)


def test_accounts_are_kept_where_they_are(accounting_lab):
    slurm = accounting_lab.slurm
    job = slurm.submit("alice", "exit 3", "--job-name=counted", "--qos=long")
    slurm.until(lambda: [row["State"] for row in slurm.accounted("counted")] == ["FAILED"] * 2, "both rows are there")
    row = slurm.accounted("counted")[0]
    assert (row["JobID"], row["ExitCode"], row["QOS"], row["Account"]) == (job, "3:0", "long", "science")
    with slurm.no_accounting():
        assert "refused" in slurm.login.run("alice", ["sacct"], check=False).stderr
    with slurm.settings("AccountingStorageEnforce=associations,qos", restart=True):
        for wrong in ("--account=nobodys", "--qos=nobodys"):
            with pytest.raises(LabError, match=r"Invalid (qos|account)"):
                slurm.submit("alice", "true", wrong)


def test_it_grows_by_a_node_beside_another_lab_and_leaves_nothing(slurm_lab, slurm, purpose):
    start = time.monotonic()
    lab = Lab.up(purpose, kinds=SLURM)
    assert time.monotonic() - start < 60
    job = lab.slurm.submit("alice", "sleep 600", "-N2")
    lab.slurm.until_state(job, "RUNNING")
    lab.add_node()
    job = lab.slurm.submit("alice", "srun hostname", "-N3")
    lab.slurm.until_state(job, "COMPLETED")
    assert set(said(lab.slurm, job).split()) == {"c1", "c2", "c3"}
    assert Lab.find(purpose).slurm.states().keys() == {"c1", "c2", "c3"}
    assert slurm.queue_empty() and slurm.states().keys() == {"c1", "c2"}
    lab.down()
    assert not traces(lab.place) and not cgroups.present(lab.place)
    assert slurm.states().keys() == {"c1", "c2"}


def test_a_person_brings_it_up_and_down_by_command(purpose):
    def hosts(*words):
        command = [sys.executable, "-m", "hosts", "--purpose", purpose, *words]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests")}
        return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)

    assert "login sinfo" in hosts("up", "--slurm").stdout
    for kind in (["--slurm", "--accounting"], []):
        assert "of another kind" in hosts("up", *kind).stderr
    assert "already" in hosts("up", "--slurm").stdout
    broken = hosts("fault", "c1", "no-slurmd", "--seconds", "0.1")
    assert broken.stdout.endswith("is over\n"), broken.stderr
    assert hosts("down").returncode == 0
    assert not traces(Place.of(purpose))


def test_it_goes_with_its_owner_though_a_job_is_frozen(purpose):
    owner = [sys.executable, "-c", OWNER, purpose]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests")}
    with subprocess.Popen(owner, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"up\n"
        slurm = Lab.find(purpose).slurm
        job = slurm.submit("alice", "sleep 600", "-N2")
        slurm.until_state(job, "RUNNING")
        for part in cgroups.present(Place.of(purpose)):
            for state in part.glob(f"**/job_{job}/freezer.state"):
                state.write_text("FROZEN")  # as Slurm does before it kills
        process.send_signal(signal.SIGKILL)
    place = Place.of(purpose)
    until(lambda: not traces(place) and not cgroups.present(place), "the lab has gone", 60)


def test_a_node_and_the_login_host_come_back_after_their_plug_was_pulled(slurm_lab, slurm):
    job = slurm.submit("alice", "sleep 4243", "--nodelist=c1")
    until(lambda: runs(slurm_lab["c1"], "4243"), "the job runs")
    slurm.until_written(job)
    with ThreadPoolExecutor() as pool:
        list(pool.map(slurm_lab.reboot, ("c2", "login")))
    slurm.until(lambda: slurm.states() == {"c1": "mix", "c2": "idle"}, "all is as before")
    assert slurm.state(job) == "RUNNING"
