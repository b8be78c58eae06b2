"""The folder of a campaign at home: what its pilots run, the arguments of its items, and its outcomes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.remote.shared.files import lock_if_possible

BEING_MADE = "being-made"
"""The file in a folder whose campaign has not begun; its client has it locked."""
GRACE_SECONDS = 3600.0
"""For so long nothing in a folder without a campaign was written before it is removed."""


class CampaignFolder:
    """The folder of one campaign, which only its user can enter. Secrets such as `env_vars` are here alone."""

    def __init__(self, campaign_id: str) -> None:
        self.path = grid_folder() / "campaigns" / campaign_id

    @property
    def is_here(self) -> bool:
        """Whether the campaign was begun from this home."""
        return (self.path / "payloads").is_dir()

    @property
    def outcomes(self) -> Path:
        """The outcome log."""
        return self.path / "outcomes"

    @contextlib.contextmanager
    def being_made(self) -> Iterator[None]:
        """Mark and lock the folder while the block runs, whose end is that of its campaign's beginning.

        Raises:
            GridError: another process does the same, or the folder can't be written.
        """
        with self._marked():
            yield
            with contextlib.suppress(OSError):
                (self.path / BEING_MADE).unlink()

    @contextlib.contextmanager
    def _marked(self) -> Iterator[None]:
        descriptor = -1
        try:
            descriptor = os.open(private_folder(self.path) / BEING_MADE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            lock_if_possible(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            is_locked = isinstance(error, BlockingIOError)
            what = f"the folder of a campaign can't be written: {error.strerror}"
            raise GridError(
                "another process begins this campaign" if is_locked else what,
                where=str(self.path),
                advice="wait for that process" if is_locked else "see that its disk has room and can be written",
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

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


def sweep_folders(is_known: Callable[[str], bool], grace: float = GRACE_SECONDS) -> None:
    """Remove the folders that clients have left which were killed before their campaigns began.

    A folder without the mark is left alone: another database may know its campaign.

    Args:
        is_known: whether there is a campaign of this id.
        grace: seconds.
    """
    for mark in (grid_folder() / "campaigns").glob(f"*/{BEING_MADE}"):
        folder = CampaignFolder(mark.parent.name)
        try:
            if time.time() - _last_written(folder.path) < grace:
                continue
            with folder.being_made():  # its client is gone
                if not is_known(folder.path.name):
                    folder.remove()
        except (OSError, GridError):  # its client goes on, or has removed it meanwhile
            continue


def _last_written(folder: Path) -> float:
    """When something in a folder was written last. A clock that was set back since makes that now."""
    return min(max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))), time.time())


def grid_folder() -> Path:
    """The folder of the grid at home."""
    return private_folder(home() / "grid")
