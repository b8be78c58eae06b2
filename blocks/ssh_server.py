"""A server without a scheduler, reached by SSH, and shared under a lock."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from slurm_ray_flow.blocks.block_documents import BlockFields
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.machine import FOLDERS, Machine, Request
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.core.cluster_facts import Facts
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.lock import Lock
from slurm_ray_flow.remote.shared.files import PIECE

if TYPE_CHECKING:
    from typing_extensions import Self

    from slurm_ray_flow.blocks.ssh.agent import Agent
    from slurm_ray_flow.blocks.transfer import Transfer
    from slurm_ray_flow.core.snapshot import Manifest

INLINE_BYTES = 64 * 1024
"""The most bytes of a file that travels in a message to the agent; larger ones go by rsync."""


class SshServer(Machine, BlockFields):
    """A server that is reached by SSH and has no scheduler: one run at a time holds it, or a few share it."""

    _block_type_name = "SSH Server"
    _block_type_slug = "ssh-server"
    _description = "Runs functions of slurm-ray-flow on a server that is reached by SSH, under a lock."

    connection: SshConnection = Field(title="Connection", description="How to log in.")
    root: str = Field(
        default="~/.slurm-ray-flow",
        title="Root folder",
        description="The folder there for everything that runs leave.",
    )
    python: str = Field(
        default="",
        description="A path, 'module:NAME' to load, or 'download'; empty finds one of home's version.",
    )
    wheels: Literal["index", "upload"] = Field(
        default="index",
        description="Where packages come from: the index that the server reaches, or this machine, which sends them.",
    )
    lock_path: str = Field(
        default="/tmp/slurmray_desi.lock",  # noqa: S108 - the place that all users of the server know
        title="Lock file",
        description=(
            "The file whose lock is exclusive use of a server that several people share, such as "
            "/tmp/slurmray_desi.lock; empty for one that nobody else uses."
        ),
        json_schema_extra={"default": ""},  # of Prefect's form; in code the lock is left out on purpose only
    )
    slots: int = Field(default=1, ge=1, le=1000, description="How many runs may share the server.")
    gpus: int | None = Field(
        default=None, ge=0, title="GPUs", description="How many GPUs runs may use; empty for all there are."
    )
    retention_days: float = Field(
        default=30.0, gt=0, title="Days to keep", description="How many days what nobody uses stays."
    )

    kind: ClassVar[str] = "ssh-server"
    reuses_environment: ClassVar[bool] = False
    watch_seconds: ClassVar[float] = 2.0  # an interruption ends the wait earlier
    _agent: Agent | None = PrivateAttr(default=None)
    _facts: Facts | None = PrivateAttr(default=None)
    _prepared: bool = PrivateAttr(default=False)

    @property
    def label(self) -> str:
        return self._block_document_name or self.connection.host

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other settings, which may lead to another host: it has no open connection."""
        copied = super().model_copy(update=update, deep=deep)
        copied._agent, copied._facts, copied._prepared = None, None, False
        return copied

    @property
    def agent(self) -> Agent:
        """The agent on the server; its first use logs in."""
        if self._agent is None:
            self._agent = self.connection.agent(root=self.root, python=self.python, label=self.label)
        return self._agent

    @property
    def root_folder(self) -> PurePosixPath:
        return self.agent.root

    @property
    def lock(self) -> Lock | None:
        return Lock(self.lock_path, self.slots, self.gpus) if self.lock_path else None

    def facts(self) -> Facts:
        if self._facts is None:
            from slurm_ray_flow.blocks.environments import UV_VERSION

            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            root = str(self.root_folder)
            python_request = {"policy": self.python, "version": version, "root": root, "uv_version": UV_VERSION}
            machine, python = self.ask_all([("machines.facts", {}), ("pythons.find", python_request)])
            self._facts = Facts(
                host=machine["host"],
                python=python["python"],
                version=version,
                platform=python["platform"],
                cpus=machine["cpus"],
                gpus=machine["gpus"] if self.gpus is None else self.gpus,
                memory=machine["memory"],
                nodes=1,
                variables=python["variables"],
            )
        return self._facts

    def prepare(self) -> PurePosixPath:
        if not self._prepared:
            self.ask("files.folders", root=str(self.root_folder), names=FOLDERS)
            self._prepared = True
        return self.agent.tools

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = lambda _: None) -> list[Any]:
        return self.agent.ask_all(requests, tell)

    def reach(self, host: str, port: int) -> Any:
        return self.agent.connection.reach(host, port)

    def place(self, files: Mapping[PurePosixPath, bytes | Path]) -> None:
        writes: list[Request] = []
        for path, content in files.items():
            if isinstance(content, Path) and content.stat().st_size > INLINE_BYTES:
                self.agent.copy_to(content, path)
            else:
                data = content.read_bytes() if isinstance(content, Path) else content
                writes.append(("files.write", {"path": str(path), "data": data}))
        if writes:
            self.ask_all(writes)

    @contextlib.contextmanager
    def fetched(self, path: PurePosixPath, most: int) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=private_folder(home() / "cache" / "fetched")) as folder:
            copy = Path(folder) / path.name
            data = self.read(path)
            if len(data) < PIECE:
                copy.write_bytes(data)
            else:
                self.agent.copy_from(path, copy, most)
            yield copy

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        self.agent.bring(folder, names, target)

    def send(self, manifest: Manifest, project_key: str) -> Transfer:
        from slurm_ray_flow.blocks import transfer

        self.prepare()
        return transfer.send_snapshot(manifest, target=self.agent.target, project_key=project_key)

    def build(self, spec: Mapping[str, Any]) -> None:
        from slurm_ray_flow.blocks import environments

        self.prepare()
        environments.build(self, spec, send=self.agent.copy_folder, policy=self.python, wheels=self.wheels)
