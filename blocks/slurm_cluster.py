"""A Slurm cluster, reached by SSH, or used on its own login node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from slurm_ray_flow.blocks.scheduler_cluster import SchedulerCluster
from slurm_ray_flow.core.scheduler import Dialect
from slurm_ray_flow.core.slurm.dialect import SLURM


class SlurmCluster(SchedulerCluster):
    """A Slurm cluster."""

    _block_type_name = "Slurm Cluster"
    _block_type_slug = "slurm-cluster"
    _description = "Runs functions of slurm-ray-flow on a Slurm cluster, each in a temporary Ray cluster."

    account: str = Field(default="", description="What is charged; empty for your default.")
    partition: str = Field(default="", description="Where jobs run; empty for the site's default.")
    qos: str = Field(default="", title="QoS", description="The quality of service; empty for your default.")
    constraint: str = Field(default="", description="Features that nodes must have, as sbatch takes them.")
    reservation: str = Field(default="", description="Nodes that are kept for you.")
    exclude: str = Field(default="", description="Nodes that are left out, as sbatch takes them.")
    sbatch_options: list[str] = Field(
        default_factory=list, title="Options of sbatch", description='More of them, such as "--mail-type=END".'
    )

    kind: ClassVar[str] = "slurm-cluster"
    UNNAMED: ClassVar[str] = "slurm"
    dialect: ClassVar[Dialect] = SLURM

    @property
    def job_defaults(self) -> Mapping[str, Any]:
        names = ("partition", "account", "qos", "constraint", "reservation", "exclude")
        return {**{name: getattr(self, name) for name in names}, "extra": tuple(self.sbatch_options)}
