"""What packages a run wants: read from the project's own files, or from what its code imports."""

from slurm_ray_flow.core.requirements.choose import wanted
from slurm_ray_flow.core.requirements.model import Line, Wanted, hide_credentials, marker_environment

__all__ = ["Line", "Wanted", "hide_credentials", "marker_environment", "wanted"]
