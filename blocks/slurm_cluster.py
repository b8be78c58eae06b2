"""A cluster whose nodes Slurm gives out, reached by SSH or from its own login node."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, PrivateAttr

from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.blocks.machine import Machine, Request
from slurm_ray_flow.blocks.slurm import submission
from slurm_ray_flow.blocks.slurm.queue import JobQueue
from slurm_ray_flow.blocks.slurm.sites import check_request
from slurm_ray_flow.blocks.slurm.submission import request_of, wanted
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.blocks.transfer import Transfer
from slurm_ray_flow.core.cluster_facts import IMAGE_PYTHON, Container, Facts
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import Event, Liveness, RunPaths
from slurm_ray_flow.core.slurm.request import sbatch_command
from slurm_ray_flow.core.snapshot import Manifest

if TYPE_CHECKING:
    from typing_extensions import Self


class SlurmCluster(Machine, Block):
    """A Slurm cluster.

    Attributes:
        connection: How to log in on its login node; empty on the login node itself.
        account: What is charged.
        partition: Where jobs run.
        qos: The quality of service.
        constraint: Features that nodes must have.
        reservation: Nodes that are kept for you.
        exclude: Nodes that are left out.
        modules: What `module load` loads in each job.
        setup: Lines of shell that each job begins with.
        sbatch_options: More options of sbatch.
        root: The folder for everything that runs leave, which all nodes see.
        scratch: The folder on each node for what a run needs there for a while.
        python: Which Python runs functions.
        wheels: Where packages come from.
        container: The image that functions run in.
        container_options: More options of `apptainer exec`.
        container_python: The image's Python.
        retention_days: How long what nobody uses stays.

    Example:
        Load a stored cluster and use it:
        ```python
        from slurm_ray_flow import SlurmCluster, slurm_ray_flow

        curnagl = SlurmCluster.load("BLOCK_NAME")


        @slurm_ray_flow(cluster=curnagl, nodes=2)
        def answer():
            return 42
        ```
    """

    _block_type_name = "Slurm Cluster"
    _block_type_slug = "slurm-cluster"
    _description = "Runs functions of slurm-ray-flow on a Slurm cluster, each in a temporary Ray cluster."
    _documentation_url = None

    model_config = ConfigDict(hide_input_in_errors=True)  # a password may be in it

    connection: SshConnection | None = Field(
        default=None,
        title="Connection",
        description="How to log in on its login node; none where that is this machine.",
    )
    account: str = Field(default="", description="What is charged; empty for your default.")
    partition: str = Field(default="", description="Where jobs run; empty for the site's default.")
    qos: str = Field(default="", title="QoS", description="The quality of service; empty for your default.")
    constraint: str = Field(default="", description="Features that nodes must have, as sbatch takes them.")
    reservation: str = Field(default="", description="Nodes that are kept for you.")
    exclude: str = Field(default="", description="Nodes that are left out, as sbatch takes them.")
    modules: list[str] = Field(default_factory=list, description="What `module load` loads in each job.")
    setup: list[str] = Field(
        default_factory=list, title="Set-up lines", description="Lines of shell that each job begins with."
    )
    sbatch_options: list[str] = Field(
        default_factory=list, title="Options of sbatch", description='More of them, such as "--mail-type=END".'
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

    kind: ClassVar[str] = "slurm-cluster"
    UNNAMED: ClassVar[str] = "slurm"
    reuses_environment: ClassVar[bool] = False
    watch_seconds: ClassVar[float] = 2.0
    queues: ClassVar[bool] = True
    _machine: Machine | None = PrivateAttr(default=None)
    _queue: JobQueue | None = PrivateAttr(default=None)

    @property
    def label(self) -> str:
        return self._block_document_name or (self.connection.host if self.connection else self.UNNAMED)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other settings; it may lead elsewhere, so it knows nothing of the place yet."""
        copied = super().model_copy(update=update, deep=deep)
        copied._machine = copied._queue = None
        return copied

    @property
    def login(self) -> Machine:
        """The login node: where commands run and files lie."""
        if self._machine is None:
            if self.connection is None:
                machine: Machine = LocalMachine(root=Path(self.root))
            else:
                machine = SshServer(
                    connection=self.connection, root=self.root, python=self.python, wheels=self.wheels, lock_path=""
                )
            cast(Block, machine)._block_document_name = self.label
            self._machine = machine
        return self._machine

    @property
    def queue(self) -> JobQueue:
        """What is in the queue; one for all blocks of this process that reach it over the same connection."""
        if self._queue is None:
            place = self.login.agent if isinstance(self.login, SshServer) else str(self.root_folder)
            self._queue = _queues.setdefault(place, JobQueue(self.login, self.user))
        return self._queue

    @property
    def user(self) -> str:
        """Whose jobs they are."""
        return str(self.login.agent.hello["user"]) if isinstance(self.login, SshServer) else getpass.getuser()

    # ---- as its login node

    @property
    def root_folder(self) -> PurePosixPath:
        return self.login.root_folder

    def facts(self) -> Facts:
        return self.login.facts()

    def prepare(self) -> PurePosixPath:
        return self._files.prepare()

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = lambda _: None) -> list[Any]:
        return self.login.ask_all(requests, tell)

    def place(self, files: Mapping[PurePosixPath, bytes | Path]) -> None:
        self._files.place(files)

    def fetched(self, path: PurePosixPath, most: int) -> AbstractContextManager[Path]:
        return self._files.fetched(path, most)

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        self._files.bring(folder, names, target)

    def send(self, manifest: Manifest, project_key: str) -> Transfer:
        return self._files.send(manifest, project_key)

    def reach(self, host: str, port: int) -> Any:
        return self.login.reach(host, port)

    def build(self, spec: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self._files.build(spec, tell)

    @property
    def _files(self) -> LocalMachine | SshServer:
        return cast(LocalMachine | SshServer, self.login)

    # ---- as Slurm

    @property
    def preamble(self) -> str:
        """What a job's script does first."""
        loads = ". /etc/profile >/dev/null 2>&1\n" if self.modules else ""
        for module in self.modules:
            loads += f"module load {shlex.quote(module)} || exit 97\n"
        scratch = f"export TMPDIR={shlex.quote(self.scratch)}\n" if self.scratch else ""
        return loads + "".join(f"{line}\n" for line in self.setup) + scratch

    def container_for(self, options: Options) -> Container | None:
        image = self.container if options.container is None else options.container
        return Container(image, tuple(self.container_options), self.container_python) if image else None

    def check(self, options: Options) -> None:
        request = wanted(self, options)
        sbatch_command(request)  # refuses options of sbatch that a run can't have
        check_request(self.login, request)

    def submit(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:
        request = request_of(self, paths, spec)
        submission.submit(self.login, self.queue, paths, request.name, sbatch_command(request))
        self.queue.submitted()

    def life(self, paths: RunPaths, events: Sequence[Event]) -> Liveness:
        return self.queue.life(paths, events)

    def cancel(self, paths: RunPaths, hard: bool = False) -> None:
        submission.cancel(self.login, self.queue, paths, hard)


_queues: dict[object, JobQueue] = {}
