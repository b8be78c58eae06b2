"""A Slurm cluster, reached by SSH, or used on its own login node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from slurm_ray_flow.blocks.scheduler_cluster import SchedulerCluster
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.core.cluster_facts import IMAGE_PYTHON
from slurm_ray_flow.core.scheduler import Dialect
from slurm_ray_flow.core.slurm.dialect import SLURM


class SlurmCluster(SchedulerCluster):
    """A Slurm cluster."""

    _block_type_name = "Slurm Cluster"
    _block_type_slug = "slurm-cluster"
    _description = "Runs functions of slurm-ray-flow on a Slurm cluster, each in a temporary Ray cluster."

    connection: SshConnection | None = Field(
        default=None,
        title="Connection",
        description="How to log in on its login node; none where that is this machine.",
    )
    account: str = Field(default="", description="What is charged; empty for your default.")
    partition: str = Field(default="", description="Where jobs run; empty for the site's default.")
    qos: str = Field(default="", title="QoS", description="The quality of service; empty for your default.")
    constraint: str = Field(default="", description="Features that nodes must have, as sbatch takes them.")
    reservation: str = Field(default="", description="Nodes that are kept for you.")
    exclude: str = Field(default="", description="Nodes that are left out, as sbatch takes them.")
    modules: list[str] = Field(default_factory=list, description="What `module load` loads in each job.")
    setup: list[str] = Field(
        default_factory=list, title="Set-up lines", description="Lines of shell that each job begins with."
    )
    sbatch_options: list[str] = Field(
        default_factory=list, title="Options of sbatch", description='More of them, such as "--mail-type=END".'
    )
    root: str = Field(
        default="~/.slurm-ray-flow",
        title="Root folder",
        description="The folder for everything that runs leave; all nodes must see it.",
    )
    scratch: str = Field(
        default="",
        title="Scratch folder",
        description="The folder on each node for what a run needs there for a while; empty for $TMPDIR or /tmp.",
    )
    python: str = Field(
        default="",
        description="A path, 'module:NAME' to load, or 'download'; empty finds one of home's version.",
    )
    wheels: Literal["index", "upload"] = Field(
        default="index",
        description="Where packages come from: the index that the login node reaches, or this machine.",
    )
    container: str = Field(
        default="", description="The path of an image of Apptainer or Singularity there; empty for none."
    )
    container_options: list[str] = Field(
        default_factory=list,
        title="Options of the container",
        description='More options of `apptainer exec`, such as "--bind=/data".',
    )
    container_python: str = Field(
        default=IMAGE_PYTHON, title="Python of the container", description="As one would call it inside."
    )
    retention_days: float = Field(
        default=30.0, gt=0, title="Days to keep", description="How many days what nobody uses stays."
    )

    kind: ClassVar[str] = "slurm-cluster"
    UNNAMED: ClassVar[str] = "slurm"
    dialect: ClassVar[Dialect] = SLURM

    @property
    def job_defaults(self) -> Mapping[str, Any]:
        names = ("partition", "account", "qos", "constraint", "reservation", "exclude")
        return {**{name: getattr(self, name) for name in names}, "extra": tuple(self.sbatch_options)}
