"""This machine as a cluster."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from prefect.blocks.core import Block
from pydantic import Field
from uv import find_uv_bin

from slurm_ray_flow.blocks import environments, programs, rsync, transfer
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.machine import FOLDERS, Machine, Request, failure
from slurm_ray_flow.blocks.processes import withheld
from slurm_ray_flow.core.cluster_facts import Facts
from slurm_ray_flow.core.errors import EnvironmentFailed
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.snapshot import Manifest
from slurm_ray_flow.core.trace import requests_shown, traced
from slurm_ray_flow.remote.agent.operations import perform
from slurm_ray_flow.remote.shared import machine
from slurm_ray_flow.remote.shared.protocol import OperationError

REACH_SECONDS = 15.0


class LocalMachine(Machine, Block):
    """This machine: functions run beside the program that calls them, in processes of their own.

    Attributes:
        root: The folder for everything that runs leave. By default ~/.slurm-ray-flow, or $SRF_HOME.

    Example:
        Load a stored machine and use it:
        ```python
        from slurm_ray_flow import LocalMachine, slurm_ray_flow

        machine = LocalMachine.load("BLOCK_NAME")


        @slurm_ray_flow(cluster=machine)
        def answer():
            return 42
        ```
    """

    _block_type_name = "Local Machine"
    _block_type_slug = "local-machine"
    _description = "Runs functions of slurm-ray-flow on this machine, inside a temporary Ray cluster."
    _documentation_url = None

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
        withheld()  # from what these operations start
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

    def send(self, manifest: Manifest, project_key: str) -> transfer.Transfer:
        self.prepare()
        return transfer.send_snapshot(manifest, target=transfer.LocalTarget(self.root_folder), project_key=project_key)

    def build(self, spec: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.prepare()
        with environments.copied(spec) as ready:
            try:
                self._build(ready, tell)
            except EnvironmentFailed:
                if ready == spec:
                    raise
            else:
                return
        # A local package may need a folder beside its own. Of one in its place, uv would take what it has built before.
        self._build({**spec, "options": [*spec["options"], "--refresh"]}, tell)

    def _build(self, spec: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        request = ("environments.build", {"spec": {**spec, "uv": find_uv_bin()}})
        self.ask_all([request], lambda event: environments.say(event, tell))

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
    found = machine.machine_facts()
    del found["libc"]
    return Facts(**found, nodes=1)
