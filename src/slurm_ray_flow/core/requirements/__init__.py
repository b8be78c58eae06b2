"""The packages that a run wants, from the project's own files or from the imports of its code."""

from slurm_ray_flow.core.requirements.choose import wanted
from slurm_ray_flow.core.requirements.model import RequirementLine, Requirements, hide_credentials, marker_environment

__all__ = ["RequirementLine", "Requirements", "hide_credentials", "marker_environment", "wanted"]
