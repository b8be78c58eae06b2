"""The seam: what a kind of cluster can do. A new kind is one class with these methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from slurm_ray_flow.blocks.machine import Request
from slurm_ray_flow.blocks.transfer import Transfer
from slurm_ray_flow.core.environment import Held
from slurm_ray_flow.core.lock import Lock
from slurm_ray_flow.core.run import Event, RunPaths
from slurm_ray_flow.core.snapshot import Manifest


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a cluster says of itself.

    Attributes:
        host: the name of the machine that answered.
        python: the interpreter that runs the head, and the driver in an environment that is not isolated.
        version: that interpreter's major and minor version, "3.11".
        platform: what binary packages depend on, "cp311-linux_x86_64".
        cpus, gpus: of one node.
        memory: bytes of one node.
        nodes: how many there are.
        variables: what that interpreter needs in its environment to start.
    """

    host: str
    python: str
    version: str
    platform: str
    cpus: int
    gpus: int
    memory: int
    nodes: int
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Cluster(Protocol):
    """A place where functions run."""

    @property
    def kind(self) -> str:
        """The slug of the block type."""

    @property
    def label(self) -> str:
        """The name people use for it."""

    @property
    def root_folder(self) -> PurePosixPath:
        """Where everything of ours lies on it."""

    @property
    def reuses_environment(self) -> bool:
        """Whether `environment="auto"` means the environment of this very interpreter."""

    @property
    def watch_seconds(self) -> float:
        """How long it waits for news before it answers that there are none."""

    @property
    def lock(self) -> Lock | None:
        """The lock under which its runs are; None where a scheduler, or nobody, sees to that."""

    def facts(self) -> Facts:
        """Ask the cluster what it is."""

    def prepare(self) -> PurePosixPath:
        """Put our programs there, once; gives the folder that holds the package `slurm_ray_flow` of a run."""

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Have one of our programs there do something: an operation of `remote/operations.py`."""

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

    def fetched(self, path: PurePosixPath) -> AbstractContextManager[Path]:
        """A file of the cluster, at home for as long as the block lasts."""

    def names(self, folder: PurePosixPath) -> Sequence[str]:
        """What lies in a folder; nothing where there is none."""

    def announce(self, path: PurePosixPath) -> bool:
        """Make an empty file; False where its folder is gone."""

    def remove(self, path: PurePosixPath) -> bool:
        """Remove a file; says whether there was one."""

    def send(self, manifest: Manifest, project_key: str) -> Transfer:
        """Bring a snapshot there."""

    def environments(self, using: str = "") -> Sequence[Held]:
        """The environments that are there; the one of digest `using` is about to be used."""

    def build(self, spec: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        """Build an environment, once, whatever runs in parallel."""

    def submit(self, paths: RunPaths) -> None:
        """Start the head of a run; gives back when it lives."""

    def alive(self, allocated: Event) -> bool:
        """Whether the head that wrote this event still lives."""
