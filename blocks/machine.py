"""The base of kinds of cluster whose files are on a POSIX machine that runs this package's programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from slurm_ray_flow.core.cluster_facts import Container, Facts
from slurm_ray_flow.core.errors import CAUSES, OptionError, Rejected, SlurmRayFlowError
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.run import ALIVE, GONE, Event, Liveness, RunPaths, find_event

if TYPE_CHECKING:
    from slurm_ray_flow.core.environment import HeldEnvironment
    from slurm_ray_flow.core.lock import Lock
    from slurm_ray_flow.core.options import Options
    from slurm_ray_flow.remote.shared.protocol import OperationError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.scheduler import Scheduler

FOLDERS = ("cache", "environments", "runs", "slurm", "snapshots", "tools", "warm", "wheelhouses")
"""The folders of the root."""

Request = tuple[str, Mapping[str, Any]]
"""An operation's name and its arguments."""


class Machine:
    """The methods of a cluster, all by operations (`remote/agent/operations.py`), which a subclass sends in `ask_all`.

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

    @property
    def scheduler(self) -> Scheduler | None:
        return None

    @property
    def preamble(self) -> str:
        return ""

    def facts(self) -> Facts:
        """The properties of the machine."""
        raise NotImplementedError

    def check(self, options: Options) -> None:
        """Check that the machine has the resources of a run.

        Raises:
            Rejected: it has less.
            OptionError: the code names what only Slurm has.
        """
        for name in sorted(options.given & {"partition", "account", "qos", "constraint"}):
            if getattr(options, name):
                raise OptionError(
                    f"{name}={getattr(options, name)!r} is for a Slurm cluster, and this run goes to {self.label}",
                    advice=f'write cluster="NAME" beside it (`srf clusters` lists the saved ones), or leave {name} out',
                )
        facts = self.facts()
        limits = (
            ("nodes", options.nodes, facts.nodes, str),
            ("cpus_per_node", options.cpus_per_node or 0, facts.cpus, str),
            ("gpus_per_node", options.gpus_per_node, facts.gpus, str),
            ("memory", options.memory or 0, facts.memory, format_memory),
        )
        for name, asked, there, write in limits:
            if asked > there:
                raise Rejected(
                    f"{name}={write(asked)} is more than the {write(there)} there are",
                    where=f"{self.label} ({facts.host})",
                    advice=f"{f'ask for {name}={write(there)} or less' if there else f'leave {name} out'}, "
                    "or choose another cluster",
                )

    def container_for(self, options: Options) -> Container | None:
        """The container that a run's processes start in; None for none."""
        return Container(options.container) if options.container else None

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

    def reach(self, host: str, port: int) -> Any:
        """A socket, or an object with its methods, to a port as the machine reaches it."""
        raise NotImplementedError

    def announce(self, path: PurePosixPath) -> bool:
        return bool(self.ask("files.announce", path=str(path)))

    def remove(self, path: PurePosixPath) -> bool:
        return bool(self.ask("files.remove", path=str(path)))

    def environments(self, using: str = "") -> Sequence[HeldEnvironment]:
        from slurm_ray_flow.core.environment import HeldEnvironment

        held = []
        for text in self.ask("environments.held", root=str(self.root_folder), using=using):
            with contextlib.suppress(ValueError):  # a damaged one is built again
                held.append(HeldEnvironment.from_json(text))
        return held

    def submit(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:  # noqa: ARG002 - the run's script knows all
        self.ask("runs.submit", root=str(paths.root), run_id=paths.run_id)

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:  # noqa: ARG002 - its process is noted in its events
        allocated = find_event(events, "allocated")
        if allocated is None:
            return GONE
        alive = self.lives(allocated)
        if alive is None and not find_event(events, "released"):
            unseen = f"the run's head is on {allocated.get('host')} and can't be seen from where {self.label} leads"
            return Liveness(alive=True, waiting=f"{unseen}: its own word is waited for")
        return ALIVE if alive else GONE

    def lives(self, allocated: Event) -> bool | None:
        """Whether the process that wrote an event still runs; None where it can't be seen."""
        noted = {
            name: allocated[name] for name in ("pid", "started", "boot_id", "host", "namespace") if name in allocated
        }
        return cast(bool | None, self.ask("runs.alive", noted=noted))

    def cancel(self, paths: RunPaths, hard: bool = False) -> None:  # noqa: ARG002 - the head ends all that it started
        self.write(paths.cancel, b"")

    def fetched(self, path: PurePosixPath, most: int) -> AbstractContextManager[Path]:
        """A file of the cluster of at most so many bytes, at home for as long as the block lasts."""
        raise NotImplementedError


def failure(error: OperationError, label: str) -> SlurmRayFlowError:
    """The error of home for an operation that failed."""
    kind = CAUSES.get(error.cause, SlurmRayFlowError)
    return kind(error.what, where=f"{label}, {error.where}" if error.where else label, advice=error.advice)
