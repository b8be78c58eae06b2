"""The preview of a launch, without a question to the cluster: values that only the cluster knows are in capitals."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import PurePosixPath

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.core.artifacts import asked
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.outputs import counted
from slurm_ray_flow.core.quantities import format_memory
from slurm_ray_flow.core.requirements import hide_credentials
from slurm_ray_flow.core.scan import FunctionSource
from slurm_ray_flow.core.text import plain, printable
from slurm_ray_flow.tasks.diff_dependencies import wanted_by, wants_ray
from slurm_ray_flow.tasks.scan_imports import ScannedCode, code_of
from slurm_ray_flow.tasks.start_ray import script_of
from slurm_ray_flow.tasks.sync_files import files_of

RUN, PROGRAM = "RUN", "PROGRAM"


@dataclasses.dataclass(frozen=True)
class Preview:
    """The preview of one launch.

    Attributes:
        cluster: the cluster's name.
        asks_for: the resources, in words; "" for the cluster's defaults.
        ray: whether the run gets a Ray cluster.
        script: the start script; with a scheduler, the whole batch script.
        files: the files that would be sent, each with its bytes.
        left: files of packages that stay at home, each with the reason.
        packages: the packages of the environment.
        environment: the environment, in words.
        variables: the names of the option `env_vars`.
        notes: what the scan could not follow, and what is left out.
    """

    cluster: str
    asks_for: str
    ray: bool
    script: str
    files: dict[str, int]
    left: dict[str, str]
    packages: list[str]
    environment: str
    variables: list[str]
    notes: list[str]

    def __str__(self) -> str:
        texts = [
            f"on {self.cluster}, {'with' if self.ray else 'without'} Ray; asks for {self.asks_for or 'the defaults'}",
            *(["variables: " + ", ".join(self.variables)] if self.variables else []),
            f"sends {counted(len(self.files), sum(self.files.values()))}",
            *(f"  {name}  {format_memory(size)}" for name, size in self.files.items()),
            *(f"  left at home: {name}, {why}" for name, why in self.left.items()),
            f"packages: {self.environment}",
            *(f"  {package}" for package in self.packages),
            *(f"note: {note}" for note in self.notes),
        ]
        return self.script + "\n" + "".join(f"# {plain(line)}\n" for text in texts for line in text.splitlines())


def preview(target: FunctionSource, label: str, cluster: Cluster, options: Options) -> Preview:
    """Make the preview of a launch.

    Args:
        target: the source that the scan starts from.
        label: the function's name.
        cluster: the cluster.
        options: the function's options on that cluster.

    Raises:
        SlurmRayFlowError: the launch would fail before it got to the cluster.
    """
    code, scan = code_of(target)
    files = files_of(code, options)
    environment, packages = _packages(code, cluster, options)
    return Preview(
        cluster=cluster.label,
        asks_for=asked(options),
        ray=wants_ray(code, options),
        script=_script(label, cluster, options),
        files={printable(entry.place.partition("/")[2]): entry.size for entry in files.entries},
        left={printable(file.file): file.why for file in files.left},
        packages=packages,
        environment=environment,
        variables=[name for name, _ in options.env_vars],
        notes=[
            *(f"{finding.file or label}:{finding.line}: {finding.text}" for finding in scan.findings),
            *files.findings,
        ],
    )


def _packages(code: ScannedCode, cluster: Cluster, options: Options) -> tuple[str, list[str]]:
    if container := cluster.container_for(options):
        return f"those of {container.image}", []
    if options.environment == "auto" and cluster.reuses_environment:
        used = [f"{item.name}=={item.version}" for item in code.scan().distributions]
        return f"of this Python, {sys.prefix}; it uses{'' if used else ' none'}", used
    chosen = wanted_by(code, options, f"{sys.version_info.major}.{sys.version_info.minor}")
    return f"an environment of its own, from {chosen.source}", [
        hide_credentials(str(line)) for line in chosen.requirements
    ]


def _script(label: str, cluster: Cluster, options: Options) -> str:
    if isinstance(cluster, LocalMachine):
        root, python = cluster.root_folder, sys.executable
    else:
        root = PurePosixPath(str(getattr(cluster, "root", "ROOT")).replace("~", "HOME", 1))
        python = "PYTHON"
    head = root / "tools" / PROGRAM / "slurm_ray_flow" / "remote" / "head" / "head.py"
    first, _, rest = script_of(cluster, [python, "-I", str(head), str(root), RUN]).partition("\n")
    directives = cluster.scheduler.directives(options, root, label, RUN) if cluster.scheduler else []
    return "\n".join([first, *directives, rest])
