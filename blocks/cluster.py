"""The interface of a kind of cluster. A new kind is one class with these methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from slurm_ray_flow.core.run import Event, Liveness, RunPaths, parse_events
from slurm_ray_flow.remote.shared.files import PIECE

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.machine import Request
    from slurm_ray_flow.blocks.scheduler import Scheduler
    from slurm_ray_flow.blocks.transfer import Transfer
    from slurm_ray_flow.core.cluster_facts import Container, Facts
    from slurm_ray_flow.core.environment import HeldEnvironment
    from slurm_ray_flow.core.lock import Lock
    from slurm_ray_flow.core.options import Options
    from slurm_ray_flow.core.snapshot import Manifest


class Cluster(Protocol):
    """A place where functions run."""

    @property
    def kind(self) -> str:
        """The slug of the block type."""

    @property
    def label(self) -> str:
        """The cluster's name."""

    @property
    def root_folder(self) -> PurePosixPath:
        """The root: the folder of this package on the cluster."""

    @property
    def reuses_environment(self) -> bool:
        """Whether `environment="auto"` means the environment of this very interpreter."""

    @property
    def watch_seconds(self) -> float:
        """Seconds that `watch` waits for new bytes, as a rule."""

    @property
    def lock(self) -> Lock | None:
        """The lock that its runs need; None for a cluster without one."""

    @property
    def scheduler(self) -> Scheduler | None:
        """What gives out its nodes; a run may wait there for long before its head begins, so that its call is announced
        before that. None where runs begin at once, or under the lock.
        """

    @property
    def preamble(self) -> str:
        """Lines of bash that the script of each run begins with."""

    def facts(self) -> Facts:
        """The properties of the cluster."""

    def check(self, options: Options) -> None:
        """Check that the cluster has the resources of a run; a `Rejected` names the limit and a request that fits."""

    def container_for(self, options: Options) -> Container | None:
        """The container that a run's processes start in; None for none."""

    def prepare(self) -> PurePosixPath:
        """Put this package's programs there, once; gives the folder of the package `slurm_ray_flow` of a run."""

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Have an operation of `remote/agent/operations.py` done there."""

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = ...) -> list[Any]:
        """Have several operations done in order, in one round trip; the first that fails ends it."""

    def read(self, path: PurePosixPath, offset: int = 0) -> bytes:
        """The bytes of a file from `offset` on; none where there is no file."""

    def watch(self, files: Sequence[tuple[PurePosixPath, int]], within: float) -> list[bytes]:
        """The bytes of files from an offset each; waits at most `within` seconds for one of them to have any."""

    def write(self, path: PurePosixPath, data: bytes) -> None:
        """Write a small private file, whole or not at all."""

    def place(self, files: Mapping[PurePosixPath, bytes | Path]) -> None:
        """Write small files and copy files from home, together."""

    def fetched(self, path: PurePosixPath, most: int) -> AbstractContextManager[Path]:
        """A file of the cluster of at most so many bytes, at home for as long as the block lasts."""

    def names(self, folder: PurePosixPath) -> Sequence[str]:
        """The names in a folder; none where there is no folder."""

    def reach(self, host: str, port: int) -> Any:
        """A socket, or an object with its methods, to a port as the cluster reaches it."""

    def announce(self, path: PurePosixPath) -> bool:
        """Make an empty file; False where its folder is gone."""

    def remove(self, path: PurePosixPath) -> bool:
        """Remove a file; says whether there was one."""

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        """Copy plain files of a folder there, with the folders they lie in, into one at home; no link is followed."""

    def send(self, manifest: Manifest, project_key: str) -> Transfer:
        """Send a snapshot there."""

    def environments(self, using: str = "") -> Sequence[HeldEnvironment]:
        """The environments that are there; the one of digest `using` is about to be used."""

    def build(self, spec: Mapping[str, Any]) -> None:
        """Build an environment, once among parallel launches."""

    def submit(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:
        """Start the head of a run; returns when the head lives, or its job is in the scheduler's queue."""

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:
        """Whether a run's head lives, or may still begin.

        Args:
            paths: the allocation's own run.
            events: what it has written so far.
        """

    def cancel(self, paths: RunPaths, hard: bool = False) -> None:
        """Have the head end a run in order; `hard` has the scheduler end it."""


def recorded(cluster: Cluster, path: PurePosixPath) -> list[Event]:
    """All events of a file, however long it is."""
    data = b""
    while piece := cluster.read(path, len(data)):
        data += piece
        if len(piece) < PIECE:
            break
    return parse_events(data)[0]
