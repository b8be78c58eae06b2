"""The dialect of Slurm (see `core/scheduler.py`)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from slurm_ray_flow.core.cluster_report import Load
from slurm_ray_flow.core.scheduler import Dialect, Job, JobRequest, SiteDialect
from slurm_ray_flow.core.slurm import accounting, queue, request, site, waiting


def _directive_lines(job: JobRequest) -> list[str]:
    return [f"#SBATCH {shlex.quote(each)}" for each in request.sbatch_arguments(job) if each != "--parsable"]


def _waiting_line(job: Job, pending: Iterable[Job], now: float) -> str:
    return waiting.waiting_text(job, waiting.ahead_of(job, pending), now)


def _partition_load(the_site: site.Site, partitions: str) -> Load:
    name = partitions.partition(",")[0] or (the_site.default.name if the_site.default else "")
    partition = the_site.partitions.get(name)
    kinds = [kind for kind in partition.kinds if not kind.away] if partition else []
    return Load(
        partition=name,
        cpus=sum(kind.cpus_used + kind.cpus_idle for kind in kinds),
        busy=sum(kind.cpus_used for kind in kinds),
        gpus=sum(kind.gpus * kind.count for kind in kinds),
        gpus_taken=sum(kind.gpus_used for kind in kinds),
    )


SLURM = Dialect(
    name="Slurm",
    submit_command=request.sbatch_command,
    rules=request.RULES,
    answer_unknown=request.answer_unknown,
    is_transient=request.is_transient,
    words=request.words,
    rejected=request.rejected,
    submitted_nothing=request.submitted_nothing,
    queue_command=queue.queue_command,
    parse_queue=queue.parse_queue,
    cancel_command=request.scancel_command,
    cause_of_end=accounting.cause_of_end,
    directives=_directive_lines,
    explain=_waiting_line,
    pending_command=queue.pending_command,
    nodes_of=queue.expanded,
    accounting_command=accounting.accounting_command,
    parse_accounting=accounting.parse_accounting,
    processes_command=queue.processes_command,
    site=SiteDialect(
        commands=site.site_commands(),
        counted=("partitions", "nodes"),
        parse=site.parse_site,
        check=site.check,
        finding=site.slurm_finding,
        load=_partition_load,
        table=site.partition_table,
        advice="`sinfo` there says more; try again later",
    ),
)
