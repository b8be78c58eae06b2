"""`srf grid submit` and `srf grid add`: campaigns and items from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.grid import Name, grid_client
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_text
from slurm_ray_flow.cli.run import launchable, load, pairs_of
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.options import is_quantity

if TYPE_CHECKING:
    from slurm_ray_flow.core.grid.model import Campaign
    from slurm_ray_flow.interface.campaign_plan import CampaignPlan

Texts = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
Optional = Parameter(show_default=False)


def submit(
    function: Annotated[str | None, Optional] = None,
    *,
    values: Annotated[Path | None, Optional] = None,
    jdl: Annotated[Path | None, Optional] = None,
    count: Annotated[int | None, Optional] = None,
    clusters: Annotated[str, Optional] = "",
    arg: Texts = (),
    option: Texts = (),
    key: Annotated[str | None, Optional] = None,
    name: Annotated[str, Optional] = "",
    weight: float = 1.0,
    retries: int = 0,
    max_failures: Annotated[int | None, Optional] = None,
    max_pilots: int = 8,
    max_queued: Annotated[int | None, Optional] = None,
    dry_run: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Begin a campaign: a function of a file for each line of a table of values.

    Examples:
        srf grid submit train.py:train --values params.csv --clusters curnagl,desi

        srf grid submit train.py:train --count 1000 --retries 2

        srf grid submit --jdl campaign.json --dry-run

    Args:
        function: The file and the function's name: path/to/file.py:function.
        values: A file of values: a .csv with a line of names, or a .jsonl with an object a line.
        jdl: CiGri's description of a campaign in JSON, instead of a function and its values.
        count: Run the function for 0, 1, 2, ... up to this many instead.
        clusters: Names of clusters, with commas between them; the function's own by default.
        arg: An argument that all items have, NAME=VALUE, as for `srf run`. May be given again.
        option: An option of the decorator, NAME=VALUE. May be given again.
        key: The column that no two lines may have in common.
        name: A name for people.
        weight: The share of this campaign among your others.
        retries: How often an item that failed is tried again.
        max_failures: End the campaign when more items than that have failed.
        max_pilots: The most pilots on each cluster.
        max_queued: The most of its pilots that wait in a cluster's queue at a time.
        dry_run: Check options, values and clusters, say what would be done, and begin nothing.
    """
    limits = {"weight": weight, "retries": retries, "max_failures": max_failures, "max_pilots": max_pilots}
    limits["max_queued"] = max_queued
    if jdl is not None:
        given = {"FUNCTION": function, "--values": values, "--count": count, "--clusters": clusters, "--arg": arg}
        _refuse_beside_a_description({**given, "--option": option, "--key": key, "--name": name})
        _begin_described(jdl, limits, dry_run, json)
        return
    function, chosen = _function_and_values(function, values, count)
    same, options = pairs_of(arg, "--arg"), pairs_of(option, "--option", is_quantity)
    flow: Any = launchable(load(function), options)
    wanted = {"name": name, "key": key, **limits}
    if dry_run:
        _tell_plan(_plan(flow, chosen, _names(clusters), wanted, same), json)
    else:
        _tell_of(flow.campaign(chosen, clusters=_names(clusters), same=same, **wanted).status(), json)


def _function_and_values(function: str | None, values: Path | None, count: int | None) -> tuple[str, Path | range]:
    """What a campaign without a description is of.

    Raises:
        OptionError: one of both is missing.
    """
    if function is None:
        raise OptionError("a campaign needs a function", advice="write srf grid submit file.py:function --values FILE")
    if (values is None) == (count is None):
        raise OptionError("a campaign needs values: give either --values or --count", advice="write --values a.csv")
    return function, values if values is not None else range(count or 0)


def _refuse_beside_a_description(given: dict[str, Any]) -> None:
    if named := [word for word, value in given.items() if value]:
        raise OptionError(f"{named[0]} is said by the description of --jdl", advice=f"leave {named[0]} out")


def _begin_described(jdl: Path, limits: dict[str, Any], dry_run: bool, json: bool) -> None:
    from slurm_ray_flow.interface.campaign_start import CampaignOptions
    from slurm_ray_flow.interface.jdl import plan_described, start_described

    wanted = CampaignOptions(spread=True, **limits)
    if dry_run:
        _tell_plan(plan_described(jdl, wanted), json)
    else:
        _tell_of(start_described(jdl, wanted).status(), json)


def _plan(
    flow: Any, values: Any, clusters: list[str] | None, chosen: dict[str, Any], same: dict[str, Any]
) -> CampaignPlan:
    from slurm_ray_flow.interface.campaign_plan import plan_campaign
    from slurm_ray_flow.interface.campaign_start import CampaignOptions

    return plan_campaign(flow, values, clusters or [flow.options.cluster], CampaignOptions(**chosen), same)


def _tell_plan(plan: CampaignPlan, json: bool) -> None:
    if json:
        print_json(dataclasses.asdict(plan))
    else:
        print_text(f"{plan}\nNothing was begun.")


def _tell_of(begun: Campaign, json: bool) -> None:
    if json:
        print_json(begun.to_json())
        return
    where = ", ".join(share.cluster for share in begun.clusters)
    print_text(f"Campaign {begun.id[:8]} has begun: {begun.total} items on {where}.")
    print_text(f"`srf grid watch {begun.id[:8]}` shows how far it is, `srf grid results {begun.id[:8]}` its values.")


def add(
    campaign: Name,
    *,
    values: Path,
    key: Annotated[str | None, Optional] = None,
    function: Annotated[str | None, Optional] = None,
    json: Json = False,
) -> None:
    """Add items to a campaign that goes on.

    Examples:
        srf grid add 3f2a --values more.csv

    Args:
        campaign: Its id, or the start of it.
        values: A file of values, as for `srf grid submit`.
        key: The column that no two lines of the file may have in common.
        function: The campaign's function, path/to/file.py:function, where its module is not in the working directory.
    """
    from slurm_ray_flow.cli.grid_items import find_modules_here
    from slurm_ray_flow.interface import campaign as campaigns

    find_modules_here()
    client = grid_client()
    flow: Any = launchable(load(function), {}) if function else None
    found: campaigns.Campaign[Any] = campaigns.Campaign(client.campaign(campaign).id, client, flow)
    count = found.add(values, key=key)
    status = found.status()
    if json:
        print_json({**status.to_json(), "added": count})
    else:
        print_text(f"Added {count} items to campaign {status.id[:8]}, which has {status.total} now.")


def _names(text: str) -> list[str] | None:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return names or None
