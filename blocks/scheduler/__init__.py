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

RUN_CHOICES = ("partition", "account", "qos", "constraint")
"""The fields of a request that a run may choose itself."""


class Scheduler:
    """The scheduler of one cluster, for one user.

    Args:
        login: the login node, where its commands run.
        dialect: the dialect of the scheduler.
        defaults: the request that all jobs share, as fields of `JobRequest`.
    """

    def __init__(self, login: LocalMachine | SshServer, dialect: Dialect, defaults: Mapping[str, Any]) -> None:
        self.login, self.dialect, self._defaults = login, dialect, defaults

    @property
    def user(self) -> str:
        """The user's name on the login node."""
        return str(self.login.agent.hello["user"]) if isinstance(self.login, SshServer) else getpass.getuser()

    @property
    def queue(self) -> JobQueue:
        """The job queue, which all blocks of this process with the same connection share."""
        where = self.login.agent if isinstance(self.login, SshServer) else str(self.login.root_folder)
        shared = _queues.get((where, self.dialect.name))
        return shared or _queues.setdefault((where, self.dialect.name), JobQueue(self.login, self.user, self.dialect))

    # ---- a run's job

    def request(self, options: Options) -> JobRequest:
        """The request of runs with these options."""
        return JobRequest(
            name="check",
            nodes=options.nodes,
            cpus_per_node=options.cpus_per_node,
            gpus_per_node=options.gpus_per_node,
            memory=options.memory,
            time_limit=_job_duration(options.time_limit, options.keep_warm),
            warn_seconds=int(options.warn_seconds or 0),
            **self._with_choices(vars(options)),
        )

    def request_of(self, paths: RunPaths, spec: Mapping[str, Any]) -> JobRequest:
        """The request of one run, from its spec.json."""
        chosen = spec.get("scheduler") or {}
        return JobRequest(
            nodes=int(spec["nodes"]),
            cpus_per_node=spec["cpus"],
            gpus_per_node=int(spec["gpus"] or 0),
            memory=spec["memory"],
            time_limit=_job_duration(spec["time_limit"], spec.get("keep_warm")),
            warn_seconds=int(spec.get("warn_seconds") or 0),
            **{**self._with_choices(chosen), **_fields_of_run(paths, str(chosen.get("name", "")))},
        )

    def _with_choices(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._defaults, **{name: values[name] for name in RUN_CHOICES if values.get(name)}}

    def directives(self, options: Options, root: PurePosixPath, function: str, run_id: str) -> list[str]:
        """The lines of a job script with the request of a run of this function."""
        request_fields = {**vars(self.request(options)), **_fields_of_run(RunPaths(root, run_id), function)}
        return self.dialect.directives(JobRequest(**request_fields))

    def submit(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:
        """Submit a run's job, exactly once."""
        submission.submit(self.login, self.queue, paths, self.request_of(paths, spec))
        self.queue.submitted()

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:
        """Whether a run's job lives or waits, with the reason of a wait, and the cause of an end."""
        return self.queue.life(paths, events)

    def cancel(self, paths: RunPaths, hard: bool = False) -> None:
        """End exactly this run's job."""
        submission.cancel(self.login, self.queue, paths, hard)

    # ---- the site

    def check(self, options: Options) -> None:
        """Check that the site has the resources for runs with these options.

        Raises:
            Rejected: it does not.
            OptionError: the request is wrong.
        """
        request = self.request(options)
        self.dialect.submit_command(request)
        check_request(self.login, self.dialect, request)

    def site(self) -> Any:
        """The site's resources now, as the dialect's `SiteDialect` reads them; None if the scheduler hides them."""
        return site(self.login, self.dialect)

    def finding(self, options: Options) -> CheckResult:
        """Whether the site accepts a job with these options.

        Raises:
            ConnectionFailed: the scheduler does not answer.
        """
        if self.dialect.site is None:
            return CheckResult(self.check_name, "ok", "it does not say what it has")
        return self.dialect.site.finding(self.site(), self.request(options))

    @property
    def check_name(self) -> str:
        """The scheduler's name in `srf check`."""
        return self.dialect.name.lower()

    def load(self) -> Load | None:
        """The load of the partition that jobs go to; None if the scheduler hides it."""
        dialect = self.dialect.site
        return dialect.load(self.site(), str(self._defaults.get("partition", ""))) if dialect else None

    def partitions(self) -> PartitionTable | None:
        """The site's partitions; None if the scheduler hides them."""
        return self.dialect.site.table(self.site()) if self.dialect.site else None

    def jobs(self) -> JobCounts:
        """The numbers of the user's running and waiting jobs, from an answer that may be some seconds old."""
        command, root = self.dialect.queue_command(self.user), str(self.login.root_folder)
        answer = self.login.ask("scheduler.query", root=root, name="queue", command=command, age=FRESH_SECONDS)
        groups = [job.group for job in self.dialect.parse_queue(answer["text"]).values()]
        return JobCounts(groups.count("running"), groups.count("waiting"))


_queues: dict[tuple[object, str], JobQueue] = {}


def _fields_of_run(paths: RunPaths, function: str) -> dict[str, str]:
    return {
        "name": job_name(function, paths.run_id),
        "output": str(paths.head_log),
        "chdir": str(paths.root),
    }


def _job_duration(time_limit: float | None, keep_warm: float | None) -> float | None:
    """The time limit of a job: that of its call, and the wait for a next one."""
    return None if time_limit is None else time_limit + (keep_warm or 0.0)
