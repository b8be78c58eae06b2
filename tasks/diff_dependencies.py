"""What packages the run wants, against what the cluster's environments hold."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from importlib.util import find_spec

from packaging.utils import canonicalize_name
from prefect.logging import get_run_logger

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.container import Container
from slurm_ray_flow.core.environment import Difference, difference, digest
from slurm_ray_flow.core.errors import DependencyError, OptionError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.requirements import Line, Wanted
from slurm_ray_flow.core.requirements.choose import OURS
from slurm_ray_flow.core.requirements.locks import LOCKS
from slurm_ray_flow.core.shown import about_packages
from slurm_ray_flow.tasks.known_requirements import known_wanted
from slurm_ray_flow.tasks.page import page
from slurm_ray_flow.tasks.policy import RETRIED, step
from slurm_ray_flow.tasks.scan_imports import Code

DASHBOARD = "aiohttp_cors"
"""A package that ray[default] has, and ray has not."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The environment that a run will have.

    Attributes:
        wanted: None where the running interpreter's own environment is used.
        difference: None likewise.
        packed: it is kept as one file, which the head unpacks on its node.
        container: the image whose packages are used; None for none.
    """

    wanted: Wanted | None
    difference: Difference | None
    packed: bool = False
    container: Container | None = None


@step(**RETRIED)
def diff_dependencies(code: Code, cluster: Cluster, options: Options) -> Plan:
    """Compare, and show the difference as a table.

    Raises:
        Rejected: the cluster has less than the run asks for, or not the container's image.
        DependencyError: the wanted packages can't be read, or exclude each other.
    """
    reporter().step("diff_dependencies")
    cluster.check(options)  # nothing is built for a run that the cluster would refuse
    if container := cluster.container_for(options):
        return _in(container, cluster, options)
    if options.environment == "auto" and cluster.reuses_environment:
        if options.dashboard:
            _check_dashboard(find_spec(DASHBOARD) is not None, f"{sys.prefix} has ray without it", "pip install")
        reporter().say("this Python's environment is used")
        _show([(item.name, item.version, item.version, "already there") for item in code.scan().distributions])
        return Plan(None, None)
    facts = cluster.facts()
    packed = options.environment == "packed"
    # Kept as one file it is another thing than kept as a folder: it has a name of its own.
    platform = f"{facts.platform}-packed" if packed else facts.platform
    chosen = wanted_by(code, options, facts.version)
    _warn(chosen, code)
    if options.dashboard and chosen.source == "uv.lock":
        locked = canonicalize_name(DASHBOARD) in {line.name for line in chosen.lines()}
        _check_dashboard(locked, "uv.lock gives ray without it", "uv add")
    found = difference(chosen, cluster.environments(digest(chosen, platform)), platform)
    _show(found.rows())
    if not found.present:
        reporter().say(
            f"packages to add: {len(found.add)}, to change: {len(found.change)}, there already: {len(found.keep)}"
        )
    return Plan(chosen, found, packed)


def wanted_by(code: Code, options: Options, python: str) -> Wanted:
    """The packages that a run wants in an environment of its own.

    Raises:
        DependencyError: they can't be read, or exclude each other.
    """
    environment = "auto" if options.environment in ("isolated", "packed") else options.environment
    return known_wanted(environment, code, python, _always(code, options))


def _in(container: Container, cluster: Cluster, options: Options) -> Plan:
    """The image holds the packages; that they will do is seen when it is started."""
    if options.environment != "auto":
        raise OptionError(
            f"the cluster's container brings its own packages, and environment={options.environment!r} asks for others",
            where=cluster.label,
            advice='write container="", too, to run without it',
        )
    found = container.found(cluster.ask("container.look", image=container.image))
    reporter().say(f"the packages of {found.image} are used")
    return Plan(None, None, container=found)


def _warn(chosen: Wanted, code: Code) -> None:
    """A lock is complete: what the code imports and the lock has not will be missing there."""
    texts = list(chosen.notes)
    locked = {*(line.name for line in map(Line.parse, (*chosen.requirements, *chosen.constraints))), OURS}
    for item in code.scan().distributions if chosen.source in LOCKS else ():
        if item.origin is None and canonicalize_name(item.name) not in locked:
            lock = chosen.source
            texts.append(f"{item.name} is imported, but {lock} does not give it: add it to the project's dependencies")
    for text in texts:
        reporter().warn(text)
        get_run_logger().warning(text)


def _always(code: Code, options: Options) -> list[str]:
    """What every run needs: the picklers as they are here, since values travel by them, and Ray where it is used."""
    needed = [f"{name}=={importlib.metadata.version(name)}" for name in ("cloudpickle", "dill")]
    if wants_ray(code, options):
        needed.append(f"ray{'[default]' if options.dashboard else ''}=={importlib.metadata.version('ray')}")
    return needed


def wants_ray(code: Code, options: Options) -> bool:
    """Whether the run gets a Ray cluster."""
    by_itself = code.uses_ray or options.nodes > 1 or options.dashboard
    return options.ray == "always" or (options.ray == "auto" and by_itself)


def _check_dashboard(there: bool, what: str, command: str) -> None:
    if not there:
        raise DependencyError(f"dashboard=True needs ray[default], and {what}", advice=f"`{command} 'ray[default]'`")


def _show(rows: list[tuple[str, str, str, str]]) -> None:
    if rows:
        page().show(about_packages(rows))
