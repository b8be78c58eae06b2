"""An OAR cluster, reached by SSH, or used on its own frontend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from slurm_ray_flow.blocks.scheduler_cluster import SchedulerCluster
from slurm_ray_flow.core.oar.dialect import OAR
from slurm_ray_flow.core.scheduler import Dialect


class OarCluster(SchedulerCluster):
    """An OAR cluster. A run's `partition`, `account` and `constraint` are OAR's queue, project and properties."""

    _block_type_name = "OAR Cluster"
    _block_type_slug = "oar-cluster"
    _description = "Runs functions of slurm-ray-flow on an OAR cluster, each in a temporary Ray cluster."

    queue: str = Field(default="", description="Where jobs go; empty for the site's default.")
    project: str = Field(default="", description="What is charged; empty for your default.")
    properties: str = Field(
        default="", description="What nodes must have, as `oarsub -p` takes it, such as \"gpumodel = 'A100'\"."
    )
    types: list[str] = Field(default_factory=list, description='Types of each job, such as "besteffort".')
    oarsub_options: list[str] = Field(
        default_factory=list, title="Options of oarsub", description='More of them, such as "-t container=7".'
    )

    kind: ClassVar[str] = "oar-cluster"
    UNNAMED: ClassVar[str] = "oar"
    dialect: ClassVar[Dialect] = OAR

    @property
    def job_defaults(self) -> Mapping[str, Any]:
        extra = (*(f"-t {name}" for name in self.types), *self.oarsub_options)
        return {"partition": self.queue, "account": self.project, "constraint": self.properties, "extra": extra}
