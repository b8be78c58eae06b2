"""A cluster with a scheduler of any kind, reached by SSH, or used on its own login node."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr

from slurm_ray_flow.blocks.block_documents import BlockFields
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.machine import Machine, Request
from slurm_ray_flow.blocks.scheduler import Scheduler
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.core.cluster_facts import Container, Facts
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import Event, Liveness, RunPaths
from slurm_ray_flow.core.scheduler import Dialect

if TYPE_CHECKING:
    from typing_extensions import Self

    from slurm_ray_flow.blocks.ssh.block import SshConnection
    from slurm_ray_flow.blocks.transfer import Transfer
    from slurm_ray_flow.core.snapshot import Manifest


class SchedulerCluster(Machine, BlockFields):
    """The base of all clusters with a scheduler. A kind adds a block's fields, a dialect and `job_defaults`."""

    kind: ClassVar[str]
    UNNAMED: ClassVar[str]
    dialect: ClassVar[Dialect]
    reuses_environment: ClassVar[bool] = False
    watch_seconds: ClassVar[float] = 2.0
    _login: LocalMachine | SshServer | None = PrivateAttr(default=None)

    if TYPE_CHECKING:
        connection: SshConnection | None
        root: str
        python: str
        wheels: Literal["index", "upload"]
        modules: list[str]
        setup: list[str]
        scratch: str
        container: str
        container_options: list[str]
        container_python: str

    @property
    def job_defaults(self) -> Mapping[str, Any]:
        """The request that all jobs share, as fields of `JobRequest`."""
        return {}

    @property
    def scheduler(self) -> Scheduler:
        return Scheduler(self.login, self.dialect, self.job_defaults)

    @property
    def label(self) -> str:
        return self._block_document_name or (self.connection.host if self.connection else self.UNNAMED)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other settings, which may lead to another host; so it has no login node yet."""
        copied = super().model_copy(update=update, deep=deep)
        copied._login = None
        return copied

    # ---- as its login node

    @property
    def login(self) -> LocalMachine | SshServer:
        """The login node, which runs the scheduler's commands and has the root."""
        if self._login is None:
            if self.connection is None:
                self._login = LocalMachine(root=Path(self.root))
            else:
                self._login = SshServer(
                    connection=self.connection, root=self.root, python=self.python, wheels=self.wheels, lock_path=""
                )
            self._login._block_document_name = self.label
        return self._login

    @property
    def root_folder(self) -> PurePosixPath:
        return self.login.root_folder

    def facts(self) -> Facts:
        return self.login.facts()

    def prepare(self) -> PurePosixPath:
        return self.login.prepare()

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = lambda _: None) -> list[Any]:
        return self.login.ask_all(requests, tell)

    def place(self, files: Mapping[PurePosixPath, bytes | Path]) -> None:
        self.login.place(files)

    def fetched(self, path: PurePosixPath, most: int) -> AbstractContextManager[Path]:
        return self.login.fetched(path, most)

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        self.login.bring(folder, names, target)

    def send(self, manifest: Manifest, project_key: str) -> Transfer:
        return self.login.send(manifest, project_key)

    def reach(self, host: str, port: int) -> Any:
        return self.login.reach(host, port)

    def build(self, spec: Mapping[str, Any]) -> None:
        self.login.build(spec)

    # ---- as the scheduler

    @property
    def preamble(self) -> str:
        """The first lines of a job's script."""
        lines = ". /etc/profile >/dev/null 2>&1\n" if self.modules else ""
        for module in self.modules:
            lines += f"module load {shlex.quote(module)} || exit 97\n"
        scratch = f"export TMPDIR={shlex.quote(self.scratch)}\n" if self.scratch else ""
        return lines + "".join(f"{line}\n" for line in self.setup) + scratch

    def container_for(self, options: Options) -> Container | None:
        image = self.container if options.container is None else options.container
        return Container(image, tuple(self.container_options), self.container_python) if image else None

    def check(self, options: Options) -> None:
        self.scheduler.check(options)

    def submit(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:
        self.scheduler.submit(paths, spec)

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:
        return self.scheduler.life(paths, events)

    def cancel(self, paths: RunPaths, hard: bool = False) -> None:
        self.scheduler.cancel(paths, hard)
