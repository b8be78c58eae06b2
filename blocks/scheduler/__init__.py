"""A cluster's scheduler as home uses it, through a shell and in its dialect (`core/scheduler.py`)."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.scheduler import submission
from slurm_ray_flow.blocks.scheduler.queue import JobQueue
from slurm_ray_flow.blocks.scheduler.sites import FRESH_SECONDS, check_request, site
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.core.cluster_report import CheckResult, JobCounts, Load, PartitionTable
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import Event, Liveness, RunPaths
from slurm_ray_flow.core.scheduler import Dialect, JobRequest, job_name

CHOICES = ("partition", "account", "qos", "constraint")
"""What a run may choose for itself."""


class Scheduler:
    """The scheduler of one cluster, for one user.

    Args:
        login: the login node, where its commands run.
        dialect: how it is spoken to.
        defaults: what all jobs ask for, as fields of `JobRequest`.
    """

    def __init__(self, login: LocalMachine | SshServer, dialect: Dialect, defaults: Mapping[str, Any]) -> None:
        self.login, self.dialect, self._defaults = login, dialect, defaults

    @property
    def user(self) -> str:
        """Whose jobs they are."""
        return str(self.login.agent.hello["user"]) if isinstance(self.login, SshServer) else getpass.getuser()

    @property
    def queue(self) -> JobQueue:
        """What is in the queue; one for all blocks of this process that reach it over the same connection."""
        where = self.login.agent if isinstance(self.login, SshServer) else str(self.login.root_folder)
        known = _queues.get((where, self.dialect.name))
        return known or _queues.setdefault((where, self.dialect.name), JobQueue(self.login, self.user, self.dialect))

    # ---- a run's job

    def request(self, options: Options) -> JobRequest:
        """What runs with these options ask for."""
        return JobRequest(
            name="check",
            nodes=options.nodes,
            cpus_per_node=options.cpus_per_node,
            gpus_per_node=options.gpus_per_node,
            memory=options.memory,
            time_limit=_lasting(options.time_limit, options.keep_warm),
            warn_seconds=int(options.warn_seconds or 0),
            **self._chosen(vars(options)),
        )

    def request_of(self, paths: RunPaths, spec: Mapping[str, Any]) -> JobRequest:
        """The request of one run, from its spec.json."""
        chosen = spec.get("scheduler") or {}
        return JobRequest(
            nodes=int(spec["nodes"]),
            cpus_per_node=spec["cpus"],
            gpus_per_node=int(spec["gpus"] or 0),
            memory=spec["memory"],
            time_limit=_lasting(spec["time_limit"], spec.get("keep_warm")),
            warn_seconds=int(spec.get("warn_seconds") or 0),
            **{**self._chosen(chosen), **_of_run(paths, str(chosen.get("name", "")))},
        )

    def _chosen(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._defaults, **{name: given[name] for name in CHOICES if given.get(name)}}

    def directives(self, options: Options, root: PurePosixPath, function: str, run_id: str) -> list[str]:
        """The lines of a script that ask for what a run of this function would."""
        asked = {**vars(self.request(options)), **_of_run(RunPaths(root, run_id), function)}
        return self.dialect.directives(JobRequest(**asked))

    def submit(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:
        """Have a run's job in the queue, once."""
        submission.submit(self.login, self.queue, paths, self.request_of(paths, spec))
        self.queue.submitted()

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:
        """Whether a run's job lives or waits, and why; of one that is gone, the cause."""
        return self.queue.life(paths, events)

    def cancel(self, paths: RunPaths, hard: bool = False) -> None:
        """End exactly this run's job."""
        submission.cancel(self.login, self.queue, paths, hard)

    # ---- the site

    def check(self, options: Options) -> None:
        """See that the site has what runs with these options ask for.

        Raises:
            Rejected: it does not.
            OptionError: no job can be asked for so.
        """
        request = self.request(options)
        self.dialect.submit_command(request)
        check_request(self.login, self.dialect, request)

    def site(self) -> Any:
        """What the site has now, as the dialect's `SiteDialect` reads it; None where it does not say."""
        return site(self.login, self.dialect)

    def finding(self, options: Options) -> CheckResult:
        """Whether the site would take a job of these options.

        Raises:
            ConnectionFailed: the scheduler does not answer.
        """
        if self.dialect.site is None:
            return CheckResult(self.check_name, "ok", "it does not say what it has")
        return self.dialect.site.finding(self.site(), self.request(options))

    @property
    def check_name(self) -> str:
        """What `srf check` calls it."""
        return self.dialect.name.lower()

    def load(self) -> Load | None:
        """How much is taken of the partition that jobs go to; None where the site does not say."""
        tells = self.dialect.site
        return tells.load(self.site(), str(self._defaults.get("partition", ""))) if tells else None

    def partitions(self) -> PartitionTable | None:
        """What the site gives out; None where it does not say."""
        return self.dialect.site.table(self.site()) if self.dialect.site else None

    def jobs(self) -> JobCounts:
        """How many of the user's jobs run and wait, as somebody asked a moment ago."""
        command, root = self.dialect.queue_command(self.user), str(self.login.root_folder)
        answer = self.login.ask("scheduler.query", root=root, name="queue", command=command, age=FRESH_SECONDS)
        groups = [job.group for job in self.dialect.parse_queue(answer["text"]).values()]
        return JobCounts(groups.count("running"), groups.count("waiting"))


_queues: dict[tuple[object, str], JobQueue] = {}


def _of_run(paths: RunPaths, function: str) -> dict[str, str]:
    return {
        "name": job_name(function, paths.run_id),
        "output": str(paths.head_log),
        "chdir": str(paths.root),
    }


def _lasting(time_limit: float | None, keep_warm: float | None) -> float | None:
    """How long the job may last: its call, and then the wait for the next one."""
    return None if time_limit is None else time_limit + (keep_warm or 0.0)
