"""Why a call failed under which processes of Ray were lost: what Ray raises then is not the function's fault."""

from __future__ import annotations

from typing import Any, Dict

from slurm_ray_flow.remote import job
from slurm_ray_flow.remote.ray_nodes import RayNodes


def blamed(ended: Dict[str, Any], used: Dict[str, Any], ray: RayNodes, in_job: bool) -> Dict[str, Any]:
    """The fields of `call_ended` with the cause that the loss had.

    Args:
        ended: the fields as the call itself gave them.
        used: what the call used, with `memory_kills`.
        ray: the allocation's Ray.
        in_job: whether this is a job of Slurm's.
    """
    what = "; ".join("node {} was lost: {}".format(*one) for one in ray.lost.items())
    if ray.starved or used["memory_kills"]:
        what, cause = what or "The kernel ended a process of Ray, for want of memory.", "out_of_memory"
    elif not what:
        return ended
    else:
        # A preemption with grace ends the other nodes' steps first, and tells the batch script only afterwards.
        cause = "preempted" if in_job and job.is_preempted() else "node_failed"
    return {**ended, "cause": cause, "message": "{}\n{}".format(what, ended["message"])}
