"""Variables of the Prefect server, one for each cluster, which all its users share."""

from __future__ import annotations

import re
from typing import Any

from slurm_ray_flow.blocks.concurrency_limit import MISSING
from slurm_ray_flow.blocks.server.api import Api, status_of, unless
from slurm_ray_flow.core.errors import ServerError


def recall(api: Api, what: str, cluster: str) -> Any:
    """The value of a variable, or None.

    Raises:
        ServerError: the server can't be reached.
    """
    variable = unless({MISSING}, lambda: api.get(f"/variables/name/{_name(what, cluster)}"))
    return variable and variable["value"]


def remember(api: Api, what: str, cluster: str, value: object) -> None:
    """Set a variable.

    Raises:
        ServerError: the server can't be reached.
    """
    name = _name(what, cluster)
    try:
        api.patch(f"/variables/name/{name}", {"value": value})
    except ServerError as error:
        if status_of(error) != MISSING:
            raise
        api.post("/variables/", {"name": name, "value": value})


def _name(what: str, cluster: str) -> str:
    return f"srf-{what}-{re.sub('[^a-z0-9_-]', '-', cluster.lower())}"
