"""What packages a run wants: read from the project's own files, or from what its code imports."""

from slurm_ray_flow.core.requirements.choose import wanted
from slurm_ray_flow.core.requirements.model import RequirementLine, Requirements, hide_credentials, marker_environment

__all__ = ["RequirementLine", "Requirements", "hide_credentials", "marker_environment", "wanted"]
