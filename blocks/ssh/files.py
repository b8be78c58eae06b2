"""Transfers of files by rsync through a channel, which continue after the loss of the connection."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from slurm_ray_flow.blocks import rsync
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.machine import Request
from slurm_ray_flow.blocks.ssh import rsync_socket
from slurm_ray_flow.blocks.ssh.connection import ConnectionLost, Outage
from slurm_ray_flow.core.errors import SlurmRayFlowError, SyncError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh.agent import Agent

_HOST = "cluster"  # rsync wants a name before the colon; the socket leads to one host only
_PARTIAL = ".rsync-partial"
_PROGRESS_SECONDS = 60.0  # after a try of this length the next outage counts as a new one
T = TypeVar("T")


@dataclass(frozen=True)
class SshTarget:
    """A host as the target of snapshots (see `SnapshotTarget` in blocks/transfer.py)."""

    agent: Agent
    root: PurePosixPath

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> rsync.Copied:
        """Copy files of a folder to the host. After a reconnection all count as sent, since rsync listed only some."""
        tries: list[Sequence[str]] = []

        def once(rsync_options: Sequence[str]) -> rsync.Copied:
            tries.append(rsync_options)
            return rsync.copy(source, f"{_HOST}:{path}", names, (*rsync_options, f"--partial-dir={_PARTIAL}", *options))

        copied = with_reconnects(self.agent, once)
        return copied if len(tries) == 1 else rsync.Copied(tuple(names), copied.bytes_sent)

    def ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """Have operations done there."""
        return self.agent.ask_all(requests)


def copy_to(agent: Agent, source: Path, path: PurePosixPath) -> None:
    """Copy a file there: beside its place, then renamed."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    agent.ask_all([("files.folders", {"root": str(path.parent), "names": [""]})])
    try:
        with_reconnects(agent, lambda options: rsync.copy_file(str(source), f"{_HOST}:{temporary}", options))
        agent.ask_all([("files.rename", {"path": str(temporary), "target": str(path)})])
    except BaseException:
        with contextlib.suppress(SlurmRayFlowError):
            agent.ask_all([("files.remove", {"path": str(temporary)})])
        raise


def copy_folder(agent: Agent, source: Path, path: PurePosixPath) -> None:
    """Copy the content of a folder into one there; existing files stay."""
    agent.ask_all([("files.folders", {"root": str(path), "names": [""]})])
    with_reconnects(agent, lambda options: rsync.copy_folder(str(source), f"{_HOST}:{path}", options))
    agent.ask_all([("files.sync_all", {"folder": str(path)})])


def copy_from(agent: Agent, path: PurePosixPath, target: Path, most: int) -> None:
    """Copy a file of at most so many bytes home: beside its place, then renamed."""
    temporary = private_folder(target.parent) / f".{target.name}.{secrets.token_hex(6)}"
    try:
        try:
            with_reconnects(agent, lambda options: rsync.copy_file(f"{_HOST}:{path}", str(temporary), options, most))
        except SyncError:
            if not temporary.exists() or temporary.stat().st_size < most:
                raise
            what = f"the file is larger than the {most} bytes that were told of it"
            raise SyncError(what, where=f"{agent.label}, {path}", advice="see what changes it there") from None
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def bring(agent: Agent, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
    """Copy files of a folder home; after a cut, the missing ones."""
    source, written = f"{_HOST}:{folder}", rsync.WRITTEN
    with_reconnects(agent, lambda options: rsync.copy(source, str(target), names, (*options, *written), umask=-1))


def with_reconnects(agent: Agent, copy: Callable[[Sequence[str]], T]) -> T:
    """Run rsync over the connection, and again after a loss of the connection.

    Args:
        agent: the agent with the connection.
        copy: runs rsync with the options for the connection.

    Raises:
        SyncError: rsync failed without a loss of the connection.
        ConnectionFailed: the connection could not be opened again.
    """
    outage = Outage(agent.connection, agent.label)
    while True:
        began = time.monotonic()
        with rsync_socket.opened(agent.connection.transfer) as bridge:
            try:
                result = copy(bridge.rsync_options)
            except SyncError:
                if bridge.failure is not None:
                    raise bridge.failure from None
                if not bridge.lost:
                    raise
            else:
                outage.over()
                return result
        if time.monotonic() - began > _PROGRESS_SECONDS:
            outage = Outage(agent.connection, agent.label)
        outage.wait(ConnectionLost(bridge.lost))
