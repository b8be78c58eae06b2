"""`srf prefect`: Prefect's own command, on the server that launches use."""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from slurm_ray_flow.cli.output import tell

FILE = "prefect.yaml"
Words = Annotated[str, Parameter(allow_leading_hyphen=True)]


def prefect(*words: Words) -> None:
    """Be Prefect's own command, on the server that launches use.

    The server that srf starts has an address and a password that Prefect's command knows nothing of; this one does.
    With a server that you configured it is the same as `prefect`. `deploy`, in a folder without a prefect.yaml, takes
    the one of slurm-ray-flow: a campaign, check-ups, clean-ups, and the mirror of locks.

    Examples:
        srf prefect deploy --all

        srf prefect worker start --pool srf

        srf prefect flow-run ls --limit 5

    Args:
        words: What Prefect's command is given; none shows its help.
    """
    from slurm_ray_flow.blocks.server import client_settings, ensure_server
    from slurm_ray_flow.blocks.server.client import pass_by_proxies

    arguments = list(words)
    if "deploy" in arguments[:2] and not Path(FILE).exists() and "--prefect-file" not in arguments:
        arguments += ["--prefect-file", str(files("slurm_ray_flow.deployments") / FILE)]
    address = ensure_server(tell)
    pass_by_proxies()
    settings = {"PREFECT_UI_URL": address.ui_url, **client_settings(address)} if address.owned else {}
    command = [sys.executable, "-m", "slurm_ray_flow.blocks.server.runner", *arguments]
    os.execve(sys.executable, command, {**os.environ, **settings})  # noqa: S606
