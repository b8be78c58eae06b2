"""A campaign by CiGri's description of one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.grid.jdl import PARAMS, Description, read_description, shell_command, with_macros
from slurm_ray_flow.interface.campaign import Campaign
from slurm_ray_flow.interface.campaign_start import CampaignOptions, OnCluster, start_campaign
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
    each = {
        name: OnCluster({**here.options}, workers=1, max_pilots=here.max_pilots)
        for name, here in described.clusters.items()
    }
    _, client = start_campaign(command.flow, values, list(each), wanted, {}, each=each, campaign_id=campaign_id)
    return Campaign(campaign_id, client, command.flow)


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
