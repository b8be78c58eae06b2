"""Prefect's own command, on the server that launches use: `python -m slurm_ray_flow.deployments deploy --all`.

Our server has an address and a password that Prefect's command knows nothing of. Where you have configured a server of
your own, that one is used. In a folder without a prefect.yaml, `deploy` takes the one of this package.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path

from slurm_ray_flow.blocks.server import client_settings, ensure_server
from slurm_ray_flow.blocks.server.client import pass_by_proxies

FILE = "prefect.yaml"


def main() -> None:
    """Be Prefect's command."""
    given = sys.argv[1:]
    if "deploy" in given[:2] and not Path(FILE).exists() and "--prefect-file" not in given:
        given += ["--prefect-file", str(files("slurm_ray_flow.deployments") / FILE)]
    address = ensure_server(lambda text: print(text, file=sys.stderr))  # noqa: T201 - it is a command
    pass_by_proxies()
    settings = {"PREFECT_UI_URL": address.ui_url, **client_settings(address)} if address.owned else {}
    os.execve(sys.executable, [sys.executable, "-m", "prefect", *given], {**os.environ, **settings})  # noqa: S606


if __name__ == "__main__":
    main()
