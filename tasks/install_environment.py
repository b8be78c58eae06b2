"""The step that builds a missing environment."""

from __future__ import annotations

import dataclasses

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.cluster_facts import Container
from slurm_ray_flow.remote.environment.installation import ARCHIVE
from slurm_ray_flow.tasks.diff_dependencies import EnvironmentPlan
from slurm_ray_flow.tasks.retry import RETRIED, step


@dataclasses.dataclass(frozen=True)
class Environment:
    """The environment of the function's process.

    Attributes:
        python: the interpreter.
        isolated: whether it was built for runs, without other packages.
        digest: the digest of its content; "" for the running interpreter's own environment.
        packed: the file of a packed environment, which the head unpacks; "" for an environment in a folder.
        container: the container of the function, with a Python of its own: `python` then runs our programs alone.
    """

    python: str
    isolated: bool
    digest: str
    packed: str = ""
    container: Container | None = None

    @property
    def listing(self) -> str:
        """The file below the root whose time is that of the last use; "" for the running interpreter's own."""
        return f"environments/{self.digest}/whole.json" if self.digest else ""


@step(**RETRIED)
def install_environment(plan: EnvironmentPlan, cluster: Cluster) -> Environment:
    """Build the environment with uv, once among parallel launches.

    Raises:
        EnvironmentFailed: uv failed; the message has its output.
    """
    if plan.container:  # our own programs run outside of it, with any Python of the cluster
        return Environment(cluster.ask("machines.facts")["python"], False, "", container=plan.container)
    facts = cluster.facts()
    if plan.wanted is None or plan.difference is None:
        return Environment(facts.python, False, "")
    digest = plan.difference.digest
    if not plan.difference.present:
        spec = {
            "root": str(cluster.root_folder),
            "digest": digest,
            "python": facts.python,
            "version": plan.wanted.python,
            "requirements": list(plan.wanted.requirements),
            "constraints": list(plan.wanted.constraints),
            "options": list(plan.wanted.options),
            "packed": plan.packed,
        }
        cluster.build(spec)
    folder = cluster.root_folder / "environments" / digest
    return Environment(str(folder / "bin" / "python"), True, digest, str(folder / ARCHIVE) if plan.packed else "")
