"""A second scheduler, to show that the seam holds: toy.sh is its program, and all that a product would add is here."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from slurm_ray_flow.blocks.scheduler_cluster import SchedulerCluster
from slurm_ray_flow.core.errors import Rejected
from slurm_ray_flow.core.scheduler import Dialect, Job, SubmissionRules

TOY = ["sh", str(Path(__file__).with_name("toy.sh"))]
GROUPS = {"waits": "waiting", "runs": "running", "over": "ended", "deleted": "ended"}


@dataclasses.dataclass(frozen=True)
class ToyJob(Job):
    @property
    def group(self):
        return GROUPS[self.state]

    @property
    def cause(self):
        return {"over": "lost", "deleted": "cancelled"}.get(self.state)


def parse_queue(text):
    return {number: ToyJob(number, name, state) for number, state, name in map(str.split, text.splitlines())}


def cause_of_end(job, words, *, began):
    return (job.cause if job else None) or "lost", f"the toy says {job.state if job else 'nothing'}\n{words}"


DIALECT = Dialect(
    name="Toy",
    submit_command=lambda request: [*TOY, "toysub", request.name, request.chdir, request.output],
    rules=SubmissionRules(job_id=["^toy job (.*)$"]),
    answer_unknown=lambda _: False,
    is_transient=lambda _: False,
    words=str.strip,
    rejected=lambda text, where: Rejected(text, where=where),
    submitted_nothing=lambda _, text, where: Rejected(text, where=where),
    queue_command=lambda _: [*TOY, "toystat"],
    parse_queue=parse_queue,
    cancel_command=lambda number, name, _: [*TOY, "toydel", number, name],
    cause_of_end=cause_of_end,
)


class ToyCluster(SchedulerCluster):
    kind: ClassVar[str] = "toy-cluster"
    UNNAMED: ClassVar[str] = "toy"
    dialect: ClassVar[Dialect] = DIALECT
    connection: None = None
    root: str
    modules: ClassVar[list] = []
    setup: ClassVar[list] = []
    scratch: ClassVar[str] = ""
    container: ClassVar[str] = ""
