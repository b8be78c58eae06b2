"""The step that compares the packages of a run with those of the cluster's environments."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.environments import ask_uv_once
from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.store import short_digest
from slurm_ray_flow.core.artifacts import about_packages
from slurm_ray_flow.core.cluster_facts import Container
from slurm_ray_flow.core.environment import Difference, difference, digest
from slurm_ray_flow.core.errors import DependencyError, OptionError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.launch_events import ArtifactMade, Note, Warned, publish
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.requirements import RequirementLine, Requirements, hide_credentials, wanted
from slurm_ray_flow.core.requirements.choose import FILES, OURS
from slurm_ray_flow.core.requirements.locks import LOCKS, lock_of
from slurm_ray_flow.tasks.retry import RETRIED, step
from slurm_ray_flow.tasks.scan_imports import ScannedCode


def cached_wanted(
    environment: str | tuple[str, ...], code: ScannedCode, python: str, always: Sequence[str]
) -> Requirements:
    """`wanted`, from a cache where none of its inputs has changed.

    Raises:
        DependencyError: the wanted packages can't be read, or exclude each other.
    """
    cache = _file_of(environment, code, python, always)
    if cache is not None:
        with contextlib.suppress(OSError, ValueError):
            return Requirements.from_json(cache.read_text())
    scan = code.scan()
    requirements = wanted(
        environment,
        Path(code.project),
        scan.distributions,
        python=python,
        uv=ask_uv_once,
        always=always,
        travelling=[file.path for file in scan.files],
    )
    text = requirements.to_json()
    # Other inputs than the files below are not watched, and index options may hold a password.
    if (
        cache is not None
        and not (requirements.contents or requirements.options or requirements.beyond)
        and hide_credentials(text) == text
    ):
        write_whole(cache, text.encode())
    return requirements


def _file_of(environment: str | tuple[str, ...], code: ScannedCode, python: str, always: Sequence[str]) -> Path | None:
    """The cache file, named by all inputs of `wanted`; None where the inputs are not known before reading."""
    if environment != "auto":
        return None
    project = Path(code.project)
    lock = lock_of(project)
    inputs = [code.digest, python, *always, str(lock), _content(lock), _content(project / "pyproject.toml")]
    present = [name for name in FILES if (project / name).exists()]
    return home() / "cache" / "wanted" / f"{short_digest(json.dumps([inputs, present, _installed()]))}.json"


def _content(file: Path | None) -> str:
    try:
        if file is None:
            return ""
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def _installed() -> list[tuple[str, int]]:
    """The folders of installed packages, with the times of their last changes."""
    folders = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    return [(str(folder), folder.stat().st_mtime_ns) for folder in folders if folder.is_dir()]


DASHBOARD = "aiohttp_cors"
"""A package that ray[default] requires, and ray alone does not."""


@dataclasses.dataclass(frozen=True)
class EnvironmentPlan:
    """The environment that a run will have.

    Attributes:
        wanted: the packages; None where the running interpreter's own environment is used.
        difference: the difference to the cluster's environments; None likewise.
        packed: whether the environment is one file, which the head unpacks on its node.
        container: the image whose packages are used; None without a container.
    """

    wanted: Requirements | None
    difference: Difference | None
    packed: bool = False
    container: Container | None = None


@step(**RETRIED)
def diff_dependencies(code: ScannedCode, cluster: Cluster, options: Options) -> EnvironmentPlan:
    """Compare the packages of a run with the cluster's environments, and show the difference as a table.

    Raises:
        Rejected: the cluster has less than the options ask for, or lacks the container's image.
        DependencyError: the wanted packages can't be read, or exclude each other.
    """
    cluster.check(options)  # nothing is built for a run that the cluster would refuse
    if container := cluster.container_for(options):
        return _container_plan(container, cluster, options)
    if options.environment == "auto" and cluster.reuses_environment:
        if options.dashboard:
            _check_dashboard(find_spec(DASHBOARD) is not None, f"{sys.prefix} has ray without it", "pip install")
        publish(Note("this Python's environment is used"))
        _show_table([(item.name, item.version, item.version, "already there") for item in code.scan().distributions])
        return EnvironmentPlan(None, None)
    facts = cluster.facts()
    packed = options.environment == "packed"
    # An environment that is kept as one file has another name than the same one as a folder.
    platform = f"{facts.platform}-packed" if packed else facts.platform
    chosen = wanted_by(code, options, facts.version)
    _warn_of_unlocked(chosen, code)
    if options.dashboard and chosen.source == "uv.lock":
        locked = canonicalize_name(DASHBOARD) in {line.name for line in chosen.lines()}
        _check_dashboard(locked, "uv.lock gives ray without it", "uv add")
    changes = difference(chosen, cluster.environments(digest(chosen, platform)), platform)
    _show_table(changes.rows())
    if not changes.present:
        counts = len(changes.add), len(changes.change), len(changes.keep)
        publish(Note("packages to add: {}, to change: {}, there already: {}".format(*counts)))
    return EnvironmentPlan(chosen, changes, packed)


def wanted_by(code: ScannedCode, options: Options, python: str) -> Requirements:
    """The packages that a run wants in an environment of its own.

    Raises:
        DependencyError: the packages can't be read, or exclude each other.
    """
    environment = "auto" if options.environment in ("isolated", "packed") else options.environment
    return cached_wanted(environment, code, python, _always_needed(code, options))


def _container_plan(container: Container, cluster: Cluster, options: Options) -> EnvironmentPlan:
    """The plan for a container, whose image holds the packages; the run's start shows whether they fit."""
    if options.environment != "auto":
        raise OptionError(
            f"the cluster's container brings its own packages, and environment={options.environment!r} asks for others",
            where=cluster.label,
            advice='write container="", too, to run without it',
        )
    found = container.found(cluster.ask("container.look", image=container.image))
    publish(Note(f"the packages of {found.image} are used"))
    return EnvironmentPlan(None, None, container=found)


def _warn_of_unlocked(chosen: Requirements, code: ScannedCode) -> None:
    """Warn of imported packages that a lock lacks: only the lock's packages are installed on the cluster."""
    texts = list(chosen.notes)
    locked = {*(line.name for line in map(RequirementLine.parse, (*chosen.requirements, *chosen.constraints))), OURS}
    for item in code.scan().distributions if chosen.source in LOCKS else ():
        if item.origin is None and canonicalize_name(item.name) not in locked:
            lock = chosen.source
            texts.append(f"{item.name} is imported, but {lock} does not give it: add it to the project's dependencies")
    for text in texts:
        publish(Warned(text))


def _always_needed(code: ScannedCode, options: Options) -> list[str]:
    """The packages that each run needs: the picklers in home's versions, and Ray where the code uses it."""
    needed = [f"{name}=={importlib.metadata.version(name)}" for name in ("cloudpickle", "dill")]
    if wants_ray(code, options):
        needed.append(f"ray{'[default]' if options.dashboard else ''}=={importlib.metadata.version('ray')}")
    return needed


def wants_ray(code: ScannedCode, options: Options) -> bool:
    """Whether the run gets a Ray cluster."""
    by_itself = code.uses_ray or options.nodes > 1 or options.dashboard
    return options.ray == "always" or (options.ray == "auto" and by_itself)


def _check_dashboard(is_present: bool, what: str, command: str) -> None:
    if not is_present:
        raise DependencyError(f"dashboard=True needs ray[default], and {what}", advice=f"`{command} 'ray[default]'`")


def _show_table(rows: list[tuple[str, str, str, str]]) -> None:
    if rows:
        publish(ArtifactMade(about_packages(rows)))
