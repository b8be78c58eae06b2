"""A campaign by CiGri's description of one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid.jdl import PARAMS, Description, read_description, shell_command, variables_of, with_macros
from slurm_ray_flow.interface.campaign import Campaign
from slurm_ray_flow.interface.campaign_start import CampaignOptions, OnCluster, script_of, start_campaign, told
from slurm_ray_flow.interface.command import Command
from slurm_ray_flow.remote.driver.command import CommandResult


def start_described(path: Path, wanted: CampaignOptions) -> Campaign[CommandResult]:
    """Begin the campaign that a description is of.

    Args:
        path: its file. A relative `param_file` lies beside it.
        wanted: what a description does not say.

    Raises:
        OptionError: the description can't be read or honoured; the field's path is named.
        SlurmRayFlowError: a cluster can't be reached or prepared.
    """
    try:
        described = read_description(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the description can't be read: {error}", where=str(path)) from None
    campaign_id = uuid.uuid4().hex
    command = Command(shell_command(described, campaign_id), name=described.name)
    values = ({PARAMS: with_macros(line, campaign_id)} for line in _lines(described, path))
    each = {name: _on_cluster(name, described, campaign_id) for name in described.clusters}
    _, client = start_campaign(command.flow, values, list(each), wanted, {}, each=each, campaign_id=campaign_id)
    return Campaign(campaign_id, client, command.flow)


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
