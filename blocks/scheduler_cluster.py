"""A cluster with a scheduler of any kind, reached by SSH, or used on its own login node."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from slurm_ray_flow.blocks.block_documents import BlockFields
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.machine import Machine, Request
from slurm_ray_flow.blocks.scheduler import Scheduler
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.core.cluster_facts import IMAGE_PYTHON, Container, Facts
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import Event, Liveness, RunPaths
from slurm_ray_flow.core.scheduler import Dialect

if TYPE_CHECKING:
    from typing_extensions import Self

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

    connection: SshConnection | None = Field(
        default=None,
        title="Connection",
        description="How to log in on its login node; none where that is this machine.",
    )
    modules: list[str] = Field(default_factory=list, description="What `module load` loads in each job.")
    setup: list[str] = Field(
        default_factory=list, title="Set-up lines", description="Lines of shell that each job begins with."
    )
    root: str = Field(
        default="~/.slurm-ray-flow",
        title="Root folder",
        description="The folder for everything that runs leave; all nodes must see it.",
    )
    scratch: str = Field(
        default="",
        title="Scratch folder",
        description="The folder on each node for what a run needs there for a while; empty for $TMPDIR or /tmp.",
    )
    python: str = Field(
        default="",
        description="A path, 'module:NAME' to load, or 'download'; empty finds one of home's version.",
    )
    wheels: Literal["index", "upload"] = Field(
        default="index",
        description="Where packages come from: the index that the login node reaches, or this machine.",
    )
    container: str = Field(
        default="", description="The path of an image of Apptainer or Singularity there; empty for none."
    )
    container_options: list[str] = Field(
        default_factory=list,
        title="Options of the container",
        description='More options of `apptainer exec`, such as "--bind=/data".',
    )
    container_python: str = Field(
        default=IMAGE_PYTHON, title="Python of the container", description="As one would call it inside."
    )
    retention_days: float = Field(
        default=30.0, gt=0, title="Days to keep", description="How many days what nobody uses stays."
    )

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
