"""Look at a cluster: can it be reached, and has it what runs need."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.shell import run
from slurm_ray_flow.blocks.slurm.request import wanted
from slurm_ray_flow.blocks.slurm.sites import site
from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
from slurm_ray_flow.core.config import beneath, configured, settings_of
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.findings import Finding, Home, judged, logged_in, not_logged_in
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.slurm.findings import NAME, slurm_finding

LOCAL = "local-machine"


def check(cluster: Cluster) -> list[Finding]:
    """All findings about a cluster; one that can't be reached is a finding, not an error."""
    try:
        root = str(cluster.root_folder)
        cluster.ask("runs.clock")  # logs in, so that the clocks are not compared over the time that takes
    except SlurmRayFlowError as error:
        return not_logged_in(error)
    began = time.time()
    try:
        answers = cluster.ask("probe.all", root=root, **_wanted(cluster))
    except SlurmRayFlowError as error:
        return [*logged_in(cluster.label), Finding("programs", "failed", error.what, error.advice)]
    home = _home(cluster, (began + time.time()) / 2)
    remote = logged_in(cluster.label) if home.remote else []
    return [*remote, *_scheduler(cluster), *_with_container(cluster, judged(answers, home))]


def _with_container(cluster: Cluster, findings: list[Finding]) -> list[Finding]:
    """A cluster whose functions run in a container needs neither a Python for them nor packages."""
    container = cluster.container_for(Options())
    if container is None:
        return findings
    try:
        found = container.found(cluster.ask("container.look", image=container.image))
        finding = Finding("container", "ok", found.image)
    except SlurmRayFlowError as error:
        finding = Finding("container", "failed", f"{error.what} ({error.where})", error.advice)
    return [finding, *(one for one in findings if one.name not in {"python", "registry"})]


def _scheduler(cluster: Cluster) -> list[Finding]:
    """What is to be said of the scheduler, where there is one."""
    if not isinstance(cluster, SlurmCluster):
        return []
    try:
        return [slurm_finding(site(cluster.login), wanted(cluster, _configured(cluster)))]
    except SlurmRayFlowError as error:
        return [Finding(NAME, "failed", error.what, error.advice)]


def _configured(cluster: SlurmCluster) -> Options:
    """What a function of the working directory's project asks for that says nothing itself."""
    settings = settings_of(None, Path.cwd(), os.environ)
    fields = {name: getattr(cluster, name) for name in type(cluster).model_fields}
    return beneath(configured(Options().stating(cluster=cluster), settings), fields)


def _wanted(cluster: Cluster) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "python": getattr(cluster, "python", "") or ("" if cluster.kind != LOCAL else sys.executable),
        "version": _version(),
    }
    return {**asked, "lock": cluster.lock.path, "slots": cluster.lock.slots} if cluster.lock else asked


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _home(cluster: Cluster, now: float) -> Home:
    gpus, wheels = getattr(cluster, "gpus", None), getattr(cluster, "wheels", "index")
    return Home(now, _rsync_here(), _version(), gpus, wheels, remote=cluster.kind != LOCAL)


def _rsync_here() -> str:
    with contextlib.suppress(SlurmRayFlowError):
        if found := re.search(r"version v?(\d+(?:\.\d+)*)", run(["rsync", "--version"], timeout=10).stdout):
            return found[1]
    return ""
