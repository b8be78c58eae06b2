"""Errors that people read: without the frames, Prefect's and ours, that they came through.

What is left of ours is marked by `__tracebackhide__`, which IPython and pytest look for.
"""

from __future__ import annotations

from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.outcome import is_from_the_cluster


def shorten(error: BaseException) -> None:
    """Take away the frames of an error that says by itself what happened; to be raised anew after that."""
    if isinstance(error, KeyboardInterrupt | SlurmRayFlowError) or is_from_the_cluster(error):
        error.__traceback__ = None
