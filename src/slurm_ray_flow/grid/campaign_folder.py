"""The folder of a campaign at home: what its pilots run, the arguments of its items, and its outcomes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.core.home import home
from slurm_ray_flow.remote.shared.files import lock_if_possible


class CampaignFolder:
    """The folder of one campaign, which only its user can enter. Secrets such as `env_vars` are here alone."""

    def __init__(self, campaign_id: str) -> None:
        self.path = grid_folder() / "campaigns" / campaign_id

    @property
    def outcomes(self) -> Path:
        """The outcome log."""
        return self.path / "outcomes"

    def write(self, digests: tuple[str, ...], clusters: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what pilots run.

        Args:
            digests: payloads of the store at home; copies of them are kept as long as the campaign.
            clusters: the launch of a pilot on each cluster, as JSON.
        """
        private_folder(self.path / "payloads")
        for digest in digests:
            write_whole(self.path / "payloads" / digest, store.get_bytes(digest))
        for name, launch in clusters.items():
            write_whole(self._cluster_file(name), json.dumps(launch).encode())

    def launch_of(self, cluster: str) -> dict[str, Any]:
        """The launch of a pilot on a cluster, as it was written; puts its payloads back into the store."""
        self.restore_payloads()
        launch: dict[str, Any] = json.loads(self._cluster_file(cluster).read_bytes())
        return launch

    def restore_payloads(self) -> None:
        """Put the payloads back into the store, if they are gone from there."""
        for file in (self.path / "payloads").iterdir():
            if not store.object_path(file.name).exists():
                store.put_bytes(file.read_bytes(), file.name)

    def hold(self) -> int | None:
        """Take the campaign for one flow run alone; gives a descriptor, whose closing lets it go. None: it is taken."""
        descriptor = os.open(self.path / "held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock_if_possible(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def remove(self) -> None:
        """Remove it with all that it holds."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _cluster_file(self, name: str) -> Path:
        folder = private_folder(self.path / "clusters")
        return folder / f"{re.sub('[^A-Za-z0-9._-]', '_', name)}.json"


def grid_folder() -> Path:
    """The folder of the grid at home."""
    return private_folder(home() / "grid")
