"""Records what a real Slurm prints in most situations: `PYTHONPATH=tests python tests/recorded/slurm/record.py`.

It brings up a Slurm of the test hosts with accounting (as root), makes jobs of every kind, and writes one file for each
answer below a folder named by Slurm's version. It takes about four minutes: the shortest time limit is a minute.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hosts.host import Host
from hosts.lab import Lab
from hosts.layout import SLURM
from hosts.machine import until
from hosts.slurm import Slurm
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm import accounting, queue, request, site
from slurm_ray_flow.remote.scheduler.commands import job_id_in

HERE = Path(__file__).parent
USER = "alice"
SLEEP = "sleep 600"
EAT = "python3 -c 'a = bytearray(900 << 20); import time; time.sleep(30)'"


class Recorder:
    """Makes jobs as a user, and keeps what Slurm says."""

    def __init__(self, login: Host, slurm: Slurm) -> None:
        self.login, self.slurm = login, slurm
        self.folder = HERE / self.run(["sinfo", "--version"]).split()[-1]
        self.folder.mkdir(exist_ok=True)

    def run(self, argv: list[str]) -> str:
        done = self.login.run(USER, argv, check=False)
        return done.stdout + done.stderr

    def keep(self, name: str, argv: list[str]) -> str:
        text = self.run(argv)
        (self.folder / name).write_text(text)
        return text

    def submit(self, name: str, script: str, *options: str, **wanted: object) -> str:
        """A job named by what is to be seen of it; its script comes from standard input."""
        argv = request.sbatch_command(JobRequest(name=name, **{"output": "/dev/null", **wanted}))  # type: ignore[arg-type]
        done = self.login.run(USER, [*argv, *options], stdin=f"#!/bin/sh\n{script}\n", check=False)
        return job_id_in(done.stdout, request.RULES.of(JobRequest(name)))

    def refuse(self, name: str, *options: str) -> None:
        done = self.login.run(USER, ["sbatch", "--parsable", *options], stdin="#!/bin/sh\n", check=False)
        (self.folder / f"sbatch-{name}.txt").write_text(done.stdout + done.stderr)

    def wait_for(self, number: str, *states: str) -> None:
        until(lambda: self.slurm.state(number) in states, f"job {number} is {states}", 150)


def record(to: Recorder) -> None:
    record_without_accounting(to)
    to.keep("sacct-all.txt", accounting.accounting_command(USER))
    to.keep("sacct-steps.txt", accounting.accounting_command(USER, ["completes.now", "out-of.memory", "two nodes|x"]))


def record_without_accounting(to: Recorder) -> None:
    for name, argv in site.site_commands().items():
        to.keep(f"site-{name}.txt", argv)
    slow = [to.submit("times.out", SLEEP, time_limit=60, memory=100 << 20)]
    refusals(to)
    ends(to)
    waits(to)
    faults(to)
    to.wait_for(slow[0], "TIMEOUT")
    to.keep("squeue-ended.txt", queue.queue_command(USER))
    to.slurm.stop_controller()
    to.refuse("no-controller", "--partition=cpu")
    to.keep("squeue-no-controller.txt", queue.queue_command(USER))
    to.slurm.start_controller()


def refusals(to: Recorder) -> None:
    to.refuse("partition", "--partition=nowhere")
    to.refuse("memory", "--mem=900G")
    to.refuse("gpus", "--gres=gpu:9")
    to.refuse("gres", "--gres=tape:1")
    to.refuse("constraint", "--constraint=skylake")
    to.refuse("reservation", "--reservation=yesterday")
    to.refuse("option", "--bogus=1")
    to.refuse("time", "--time=soon")
    to.refuse("too-long", "--time=9999")
    to.refuse("too-many", "--partition=short", "--nodes=2")
    to.refuse("too-wide", "--cpus-per-task=99")
    to.refuse("node", "--nodelist=c9")


def ends(to: Recorder) -> None:
    jobs = [
        to.submit("completes.now", "srun true"),
        to.submit("fails.now", "exit 3"),
        to.submit("two nodes|x", "srun hostname", nodes=2, cpus_per_node=2),
        to.submit("no.output", "true", output="/nowhere/at/all.txt"),
        to.submit("out-of.memory", f"srun {EAT}", memory=100 << 20),
        to.submit("out-of.memory-batch", EAT, memory=100 << 20),
    ]
    cancelled = to.submit("is.cancelled", SLEEP, memory=10 << 20)
    to.wait_for(cancelled, "RUNNING")
    to.run(["scancel", cancelled])
    for job in [*jobs, cancelled]:
        to.wait_for(job, "COMPLETED", "FAILED", "OUT_OF_MEMORY", "CANCELLED")
    spare = to.submit("is.preempted", SLEEP, partition="spare", nodes=2, memory=3900 << 20)
    to.wait_for(spare, "RUNNING")
    to.submit("preempts", "true", nodes=2, memory=3900 << 20)
    to.wait_for(spare, "PREEMPTED")


def waits(to: Recorder) -> None:
    running = to.submit("runs", SLEEP, nodes=2, memory=3500 << 20, gpus_per_node=1, time_limit=1200)
    to.wait_for(running, "RUNNING")
    jobs = [running, to.submit("waits.resources", SLEEP, nodes=2, memory=3500 << 20, time_limit=1200)]
    jobs += [to.submit("waits.priority", SLEEP, nodes=2, memory=3500 << 20, time_limit=3600)]
    until(lambda: to.slurm.job(jobs[1]).get("StartTime") != "Unknown", "a start is expected", 90)
    to.keep("squeue-expected.txt", queue.queue_command(USER))
    jobs += [to.submit("waits.too-long", SLEEP, time_limit=9999 * 60)]
    jobs += [to.submit("waits.too-many", SLEEP, partition="short", nodes=2)]
    jobs += [to.submit("waits.closed", SLEEP, partition="closed")]
    jobs += [to.submit("waits.begin", SLEEP, extra=("--begin=now+1hour",))]
    jobs += [to.submit("waits.held", SLEEP, extra=("--hold",))]
    jobs += [to.submit("waits.dependency", SLEEP, extra=(f"--dependency=afterok:{running}",))]
    jobs += [to.submit("waits.admin", SLEEP, extra=("--hold",))]
    to.slurm.root("scontrol", "hold", jobs[-1])
    to.slurm.drain("c2")
    jobs += [to.submit("waits.drained", SLEEP, memory=10 << 20, extra=("-w c2",))]
    until(lambda: to.slurm.job(jobs[-1]).get("Reason", "").startswith("ReqNode"), "the drained node is the reason", 60)
    to.keep("squeue-waiting.txt", queue.queue_command(USER))
    to.keep("squeue-pending-cpu.txt", queue.pending_command("cpu"))
    to.keep("site-nodes-busy.txt", site.site_commands()["nodes"])
    to.slurm.resume("c2")
    to.run(["scancel", "--state=PENDING", f"--user={USER}"])
    failed = to.submit("depends", "true", extra=(f"--dependency=afterok:{running}",))
    to.run(["scancel", running])
    until(lambda: "Never" in to.slurm.job(failed).get("Reason", ""), "the dependency can't be met", 60)
    to.keep("squeue-never.txt", queue.queue_command(USER))
    to.run(["scancel", failed])


def faults(to: Recorder) -> None:
    lost = to.submit("loses.its-node", SLEEP, memory=10 << 20, extra=("-w c2",))
    to.wait_for(lost, "RUNNING")
    to.slurm.kill_slurmd("c2")
    to.wait_for(lost, "NODE_FAIL")
    to.keep("squeue-node-failed.txt", queue.queue_command(USER))
    to.keep("site-nodes-down.txt", site.site_commands()["nodes"])
    to.slurm.start_slurmd("c2")
    until(lambda: to.slurm.states().get("c2") == "idle", "c2 is back", 60)


def main() -> None:
    purpose = sys.argv[1] if sys.argv[1:] else "recording"
    lab = Lab.up(purpose, kinds=SLURM, owner=os.getpid(), accounting=True)
    try:
        lab.slurm.wait_until_ready()
        record(Recorder(lab["login"], lab.slurm))
    finally:
        lab.down()


if __name__ == "__main__":
    main()
