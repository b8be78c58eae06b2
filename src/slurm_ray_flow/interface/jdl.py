"""A campaign by CiGri's description of one."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid.jdl import PARAMS, Description, read_description, shell_command, variables_of, with_macros
from slurm_ray_flow.interface.campaign import Campaign
from slurm_ray_flow.interface.campaign_plan import CampaignPlan, plan_campaign
from slurm_ray_flow.interface.campaign_start import CampaignOptions, OnCluster, script_of, start_campaign, told
from slurm_ray_flow.interface.command import Command
from slurm_ray_flow.remote.driver.command import CommandResult


class Described(NamedTuple):
    """A campaign that a description is of, as `start_campaign` takes it."""

    campaign_id: str
    command: Command
    values: Iterator[dict[str, str]]
    each: dict[str, OnCluster]


def described(path: Path) -> Described:
    """Read a description.

    Args:
        path: its file. A relative `param_file` lies beside it.

    Raises:
        OptionError: it can't be read or honoured; the field's path is named.
        SlurmRayFlowError: a cluster does not say whether it has best-effort jobs.
    """
    try:
        found = read_description(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the description can't be read: {error}", where=str(path)) from None
    campaign_id = uuid.uuid4().hex
    command = Command(shell_command(found, campaign_id), name=found.name)
    values = ({PARAMS: with_macros(line, campaign_id)} for line in _lines(found, path))
    each = {name: _on_cluster(name, found, campaign_id) for name in found.clusters}
    return Described(campaign_id, command, values, each)


def start_described(path: Path, wanted: CampaignOptions) -> Campaign[CommandResult]:
    """Begin the campaign that a description is of.

    Args:
        path: its file.
        wanted: what a description does not say.

    Raises:
        OptionError: the description can't be read or honoured; the field's path is named.
        SlurmRayFlowError: a cluster can't be reached or prepared.
    """
    found = described(path)
    wanted = dataclasses.replace(wanted, about=found.command.command)
    flow, names = found.command.flow, list(found.each)
    each, campaign_id = found.each, found.campaign_id
    _, client = start_campaign(flow, found.values, names, wanted, {}, each=each, campaign_id=campaign_id)
    return Campaign(found.campaign_id, client, found.command.flow)


def plan_described(path: Path, wanted: CampaignOptions) -> CampaignPlan:
    """What `start_described` would do.

    Raises:
        OptionError, SlurmRayFlowError: as for `start_described`.
    """
    found = described(path)
    return plan_campaign(found.command.flow, found.values, list(found.each), wanted, {}, each=found.each)


def _on_cluster(name: str, described: Description, campaign_id: str) -> OnCluster:
    """What a description wants on one cluster, in a campaign's words.

    Raises:
        OptionError: jobs are to be best-effort ones, and the cluster preempts none.
        SlurmRayFlowError: the cluster does not answer.
    """
    here = described.clusters[name]
    options = {**here.options, "env_vars": variables_of(described, name, campaign_id)}
    if here.best_effort and not {"partition", "qos"} & options.keys():
        options["partition"] = _preemptible(name)
    scripts = {
        which: script_of(with_macros(lines, campaign_id), seconds, with_macros(here.folder, campaign_id))
        for which, (lines, seconds) in here.scripts.items()
    }
    return OnCluster(options, workers=1, max_pilots=here.max_pilots, scripts=scripts)


def _preemptible(name: str) -> str:
    """The first partition of a cluster whose jobs may be preempted, which is what best-effort means there."""
    with told():
        scheduler = find_cluster(name).scheduler
        table = scheduler.partitions() if scheduler else None
    for partition in table.values["partitions"] if table else ():
        if partition["preemptible"] and partition["state"] == "UP" and not partition["hidden"]:
            return str(partition["name"])
    what = f"clusters.{name}.type can't be honoured: {name} has no partition whose jobs may be preempted"
    advice = "write properties \"qos='NAME'\" for a QOS of that kind, or leave the type out"
    raise OptionError(what, where=f"clusters.{name}.type", advice=advice)


def _lines(described: Description, path: Path) -> Iterator[str]:
    """The items' parameters."""
    most = len(described.clusters) if described.test_mode else None
    for number, line in enumerate(_all_lines(described, path)):
        if most is not None and number >= most:
            return
        yield line


def _all_lines(described: Description, path: Path) -> Iterator[str]:
    if described.params is not None:
        yield from described.params
        return
    file = path.parent / Path(described.param_file).expanduser()
    try:
        with file.open(encoding="utf-8") as stream:
            for line in stream:
                if line.strip():  # a line without parameters is none: OAR would make a job of it
                    yield line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"param_file can't be read: {error}", where=str(file)) from None
