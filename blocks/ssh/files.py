"""Files over the connection: rsync through a channel, which continues after a cut."""

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

_HOST = "cluster"  # rsync wants a name before the colon; the door leads to one host only
_PARTIAL = ".rsync-partial"
_PROGRESS = 60.0  # a try that went on for so long was of use: the next outage is one of its own
T = TypeVar("T")


@dataclass(frozen=True)
class SshTarget:
    """A host that snapshots go to (blocks/transfer.py: Target)."""

    agent: Agent
    root: PurePosixPath

    def copy(self, source: str, path: str, names: Sequence[str], options: Sequence[str]) -> rsync.Copied:
        """Copy files of a folder there. After a cut all count as sent: those of the first attempt are not known."""
        tries: list[Sequence[str]] = []

        def once(way: Sequence[str]) -> rsync.Copied:
            tries.append(way)
            return rsync.copy(source, f"{_HOST}:{path}", names, (*way, f"--partial-dir={_PARTIAL}", *options))

        copied = patiently(self.agent, once)
        return copied if len(tries) == 1 else rsync.Copied(tuple(names), copied.bytes_sent)

    def ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """Have operations done there."""
        return self.agent.ask_all(requests)


def copy_to(agent: Agent, source: Path, path: PurePosixPath) -> None:
    """Copy a file there: beside its place, then renamed."""
    beside = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    agent.ask_all([("files.folders", {"root": str(path.parent), "names": [""]})])
    try:
        patiently(agent, lambda way: rsync.copy_file(str(source), f"{_HOST}:{beside}", way))
        agent.ask_all([("files.rename", {"path": str(beside), "target": str(path)})])
    except BaseException:
        with contextlib.suppress(SlurmRayFlowError):
            agent.ask_all([("files.remove", {"path": str(beside)})])
        raise


def copy_folder(agent: Agent, source: Path, path: PurePosixPath) -> None:
    """Copy the content of a folder into one there; existing files stay."""
    agent.ask_all([("files.folders", {"root": str(path), "names": [""]})])
    patiently(agent, lambda way: rsync.copy_folder(str(source), f"{_HOST}:{path}", way))
    agent.ask_all([("files.sync_all", {"folder": str(path)})])


def copy_from(agent: Agent, path: PurePosixPath, target: Path, most: int) -> None:
    """Copy a file of at most so many bytes home: beside its place, then renamed."""
    beside = private_folder(target.parent) / f".{target.name}.{secrets.token_hex(6)}"
    try:
        try:
            patiently(agent, lambda way: rsync.copy_file(f"{_HOST}:{path}", str(beside), way, most))
        except SyncError:
            if not beside.exists() or beside.stat().st_size < most:
                raise
            what = f"the file is larger than the {most} bytes that were told of it"
            raise SyncError(what, where=f"{agent.label}, {path}", advice="see what changes it there") from None
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def bring(agent: Agent, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
    """Copy files of a folder home; after a cut, the missing ones."""
    patiently(agent, lambda way: rsync.copy(f"{_HOST}:{folder}", str(target), names, (*way, *rsync.WRITTEN), umask=-1))


def patiently(agent: Agent, copy: Callable[[Sequence[str]], T]) -> T:
    """Have rsync copy over the connection, again if it was lost.

    Args:
        agent: whose connection.
        copy: starts rsync with options for the way there.

    Raises:
        SyncError: rsync failed, though the connection held.
        ConnectionFailed: the connection could not be made again.
    """
    outage = Outage(agent.connection, agent.label)
    while True:
        began = time.monotonic()
        with rsync_socket.opened(agent.connection.transfer) as entrance:
            try:
                done = copy(entrance.rsync_options)
            except SyncError:
                if entrance.failure is not None:
                    raise entrance.failure from None
                if not entrance.lost:
                    raise
            else:
                outage.over()
                return done
        if time.monotonic() - began > _PROGRESS:
            outage = Outage(agent.connection, agent.label)
        outage.wait(ConnectionLost(entrance.lost))
