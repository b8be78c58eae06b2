"""What kinds of cluster have in common whose files lie on a POSIX machine that our programs can run on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from slurm_ray_flow.core.environment import Held
from slurm_ray_flow.core.errors import CAUSES, SlurmRayFlowError
from slurm_ray_flow.core.lock import Lock
from slurm_ray_flow.core.run import Event, RunPaths
from slurm_ray_flow.remote.errors import OperationError

FOLDERS = ("environments", "runs", "snapshots", "tools", "warm")
"""What lies right in the root."""

Request = tuple[str, Mapping[str, Any]]
"""An operation's name and its arguments."""


class Machine:
    """Does everything by asking for operations (`remote/operations.py`); a kind of cluster says how they are asked.

    A mixin: a block with `label`, `root_folder` and `ask_all`.
    """

    @property
    def label(self) -> str:
        raise NotImplementedError

    @property
    def root_folder(self) -> PurePosixPath:
        raise NotImplementedError

    @property
    def lock(self) -> Lock | None:
        return None

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = lambda _: None) -> list[Any]:
        """Have several operations done in order, in one round trip; the first that fails ends it.

        Raises:
            SlurmRayFlowError: one could not be done.
        """
        raise NotImplementedError

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Have one operation done."""
        return self.ask_all([(operation, arguments)])[0]

    def read(self, path: PurePosixPath, offset: int = 0) -> bytes:
        found: bytes = self.ask("files.read", path=str(path), offset=offset)
        return found

    def watch(self, files: Sequence[tuple[PurePosixPath, int]], within: float) -> list[bytes]:
        places = [(str(path), offset) for path, offset in files]
        reads = [("files.read", {"path": path, "offset": offset}) for path, offset in places]
        return self.ask_all([("files.await_growth", {"files": places, "within": within}), *reads])[1:]

    def write(self, path: PurePosixPath, data: bytes) -> None:
        self.ask("files.write", path=str(path), data=data)

    def names(self, folder: PurePosixPath) -> Sequence[str]:
        found: list[str] = self.ask("files.names", path=str(folder))
        return found

    def announce(self, path: PurePosixPath) -> bool:
        return bool(self.ask("files.announce", path=str(path)))

    def remove(self, path: PurePosixPath) -> bool:
        return bool(self.ask("files.remove", path=str(path)))

    def environments(self, using: str = "") -> Sequence[Held]:
        held = []
        for text in self.ask("environments.held", root=str(self.root_folder), using=using):
            with contextlib.suppress(ValueError):  # a damaged one is built again
                held.append(Held.from_json(text))
        return held

    def submit(self, paths: RunPaths) -> None:
        self.ask("runs.submit", root=str(paths.root), run_id=paths.run_id)

    def alive(self, allocated: Event) -> bool:
        noted = {name: allocated.get(name) for name in ("pid", "started", "boot_id")}
        return bool(self.ask("runs.alive", **noted))

    @contextlib.contextmanager
    def fetched(self, path: PurePosixPath) -> Iterator[Path]:
        """A file of the cluster, at home for as long as the block lasts."""
        raise NotImplementedError


def failure(error: OperationError, label: str) -> SlurmRayFlowError:
    """What people get to see of an operation that could not be done."""
    kind = CAUSES.get(error.cause, SlurmRayFlowError)
    return kind(error.what, where=f"{label}, {error.where}" if error.where else label, advice=error.advice)
