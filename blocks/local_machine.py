"""This machine as a cluster."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from uv import find_uv_bin

from slurm_ray_flow.blocks import programs, rsync
from slurm_ray_flow.blocks.block_documents import BlockFields
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.machine import FOLDERS, Machine, Request, failure
from slurm_ray_flow.blocks.processes import withheld
from slurm_ray_flow.core.cluster_facts import Facts
from slurm_ray_flow.core.errors import EnvironmentFailed
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.trace import requests_shown, traced
from slurm_ray_flow.remote.agent.operations import perform
from slurm_ray_flow.remote.shared import machine
from slurm_ray_flow.remote.shared.protocol import OperationError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.transfer import Transfer
    from slurm_ray_flow.core.snapshot import Manifest

REACH_SECONDS = 15.0


class LocalMachine(Machine, BlockFields):
    """This machine: functions run beside the program that calls them, in processes of their own."""

    _block_type_name = "Local Machine"
    _block_type_slug = "local-machine"
    _description = "Runs functions of slurm-ray-flow on this machine, inside a temporary Ray cluster."

    root: Path | None = Field(
        default=None,
        title="Root folder",
        description="The folder for everything that runs leave; empty for the default.",
    )

    kind: ClassVar[str] = "local-machine"
    reuses_environment: ClassVar[bool] = True
    watch_seconds: ClassVar[float] = 0.25

    @property
    def label(self) -> str:
        return self._block_document_name or "local"

    @property
    def root_folder(self) -> PurePosixPath:
        return PurePosixPath(self.root.expanduser().absolute() if self.root else home())

    def facts(self) -> Facts:
        return _facts()

    def prepare(self) -> PurePosixPath:
        self.ask("files.folders", root=str(self.root_folder), names=FOLDERS)
        return PurePosixPath(programs.install(Path(self.root_folder)))

    def ask_all(self, requests: Sequence[Request], tell: Callable[[Any], None] = lambda _: None) -> list[Any]:
        withheld()  # so that programs of these operations do not get passwords
        try:
            with traced(self.label, lambda: requests_shown(requests)):
                return [perform(operation, dict(arguments), tell) for operation, arguments in requests]
        except OperationError as error:
            raise failure(error, self.label) from error

    def place(self, files: Mapping[PurePosixPath, bytes | Path]) -> None:
        for path, content in files.items():
            if isinstance(content, bytes):
                self.write(path, content)
            else:
                _link(content, private_folder(Path(path).parent) / path.name)

    @contextlib.contextmanager
    def fetched(self, path: PurePosixPath, most: int) -> Iterator[Path]:  # noqa: ARG002 - it stays where it is
        yield Path(path)

    def bring(self, folder: PurePosixPath, names: Sequence[str], target: Path) -> None:
        rsync.copy(str(folder), str(target), names, rsync.WRITTEN, umask=-1)

    def send(self, manifest: Manifest, project_key: str) -> Transfer:
        from slurm_ray_flow.blocks import transfer

        self.prepare()
        return transfer.send_snapshot(manifest, target=transfer.LocalTarget(self.root_folder), project_key=project_key)

    def build(self, spec: Mapping[str, Any]) -> None:
        from slurm_ray_flow.blocks import environments

        self.prepare()
        with environments.with_copies_of_local(spec) as copied_spec:
            try:
                self._build(copied_spec)
            except EnvironmentFailed:
                if copied_spec == spec:
                    raise
            else:
                return
        # A local package may need a folder beside its own. There uv needs --refresh, or it reuses the build.
        self._build({**spec, "options": [*spec["options"], "--refresh"]})

    def _build(self, spec: Mapping[str, Any]) -> None:
        from slurm_ray_flow.blocks.environments import publish_progress

        request = ("environments.build", {"spec": {**spec, "uv": find_uv_bin()}})
        self.ask_all([request], publish_progress)

    def reach(self, host: str, port: int) -> socket.socket:
        return socket.create_connection((host, port), REACH_SECONDS)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


@functools.cache
def _facts() -> Facts:
    facts = machine.machine_facts()
    del facts["libc"]
    return Facts(**facts, nodes=1)
