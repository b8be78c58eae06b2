"""`srf forget`: a saved cluster is removed from home."""

from __future__ import annotations

from typing import Annotated

from slurm_ray_flow.cli.offered import A_CLUSTER
from slurm_ray_flow.cli.output import Switch, print_text
from slurm_ray_flow.cli.saved import use_server
from slurm_ray_flow.core.errors import OptionError


def forget(name: Annotated[str, A_CLUSTER], *, force: Annotated[bool, Switch] = False) -> None:
    """Remove a saved cluster, and the connection that was saved with it.

    Nothing happens on the cluster itself: `srf clean NAME` before that removes what lies there.

    Examples:
        srf forget desi

    Args:
        name: The cluster's name.
        force: Also while runs there have not ended; they go on, and are not found from here any more.
    """
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.blocks.saved import forget_cluster

    alive = [record.run_id[:8] for record in store.records() if record.cluster == name and not record.ended]
    if alive and not force:
        raise OptionError(
            f"{len(alive)} runs on {name!r} have not ended, as far as home knows: {', '.join(alive[:5])}",
            advice="`srf attach RUN` fetches their values, `srf cancel RUN` ends them; --force forgets it anyway",
        )
    use_server()
    forget_cluster(name)
    print_text(f"{name} is forgotten.")
