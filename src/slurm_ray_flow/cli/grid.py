"""`srf grid`: the campaigns of this home, their items, pilots and events."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.names import completed_from
from slurm_ray_flow.cli.output import Json, print_json, print_table, print_text, tell
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import format_duration

if TYPE_CHECKING:
    from slurm_ray_flow.core.grid.model import Campaign
    from slurm_ray_flow.grid.client import GridClient

MOST_CAMPAIGNS = 50
AT_WORK = {"campaign": "at pilots", "map": "under way"}


def _campaigns() -> Iterator[tuple[str, str]]:
    """The latest campaigns for completion; without a running engine none is started."""
    from slurm_ray_flow.blocks.grid_engine import read_engine_state

    if read_engine_state() is not None:
        for campaign in grid_client().campaigns(own=True)[:MOST_CAMPAIGNS]:
            yield campaign.id[:8], f"{campaign.name}, {campaign.state.value}"


A_CAMPAIGN = completed_from(_campaigns)
Name = Annotated[str, A_CAMPAIGN]


def stat(
    campaign: Annotated[str | None, A_CAMPAIGN] = None,
    *,
    description: Annotated[bool, Parameter(name=["--description", "-d"], negative="", show_default=False)] = False,
    json: Json = False,
) -> None:
    """Show all campaigns, or one with its clusters.

    Examples:
        srf grid stat

        srf grid stat 3f2a

        srf grid stat 3f2a --description

    Args:
        campaign: Its id, or the start of it.
        description: Show what it runs, and what its pilots ask for, instead of how far it is.
    """
    client = grid_client()
    if trouble := client.trouble():
        tell(f"The engine waits, and goes on by itself: {trouble}")
    if description:
        if campaign is None:
            raise OptionError("which campaign?", advice="write srf grid stat ID --description")
        _describe(client.description(client.campaign(campaign).id), json)
        return
    if campaign is None:
        found = client.campaigns()
        if json:
            print_json([{**one.to_json(), "kind": one.kind} for one in found])
        elif found:
            columns = ["id", "kind", "user", "state", "done", "failed", "items", "began", "name"]
            print_table(columns, list(map(_row, found)))
        else:
            print_text("There is no campaign yet: `f.campaign(values)` begins one.")
        return
    one = client.campaign(campaign)
    if json:
        print_json({**one.to_json(), "kind": one.kind, "pilots": client.pilots(one.id)})
        return
    _print_campaign(one, client.pilots(one.id))


def _describe(found: dict[str, Any], json: bool) -> None:
    if json:
        print_json(found)
        return
    rows = [["runs", found["options"].get("about") or found["function"]], ["of", found["user"]]]
    chosen = {"items": found["total"], **{name: found[name] for name in ("weight", "retries", "max_failures")}}
    rows += [[name.replace("_", " "), str(value)] for name, value in chosen.items() if value is not None]
    for name, there in found["clusters"].items():
        options = [f"{option}={value}" for option, value in there["options"].items()]
        rows.append([name, f"at most {there['max_pilots']} pilots of {there['pilot']['workers']} items at a time"])
        rows.append(["", ", ".join(options)])
        scripts = {script: there["pilot"][script] for script in ("prologue", "epilogue") if script in there["pilot"]}
        rows += [[script, f"{said['command']} (at most {said['seconds']:.0f} s)"] for script, said in scripts.items()]
    print_table([f"campaign {found['id'][:8]}", found["name"]], rows)


def _row(campaign: Campaign) -> list[str]:
    counts = (campaign.succeeded, campaign.failed, campaign.total)
    return [
        campaign.id[:8],
        campaign.kind,
        campaign.user,
        campaign.state.value,
        *map(str, counts),
        clock(campaign.created),
        campaign.name,
    ]


def _print_campaign(campaign: Campaign, pilots: list[dict[str, Any]]) -> None:
    reason = campaign.reason or (f"it waits, since {campaign.obstacle}" if campaign.obstacle else "")
    state = campaign.state.value + (f": {reason}" if reason else "")
    rows = [
        ["state", state],
        ["items", f"{campaign.succeeded} done, {campaign.failed} failed, {campaign.total} in all"],
        ["now", f"{campaign.leased} {AT_WORK[campaign.kind]}, {campaign.unleased} wait"],
        ["began", f"{clock(campaign.created)}, by {campaign.user}"],
    ]
    for share in campaign.clusters:
        if campaign.kind == "map":
            rows.append([share.cluster, "each call is a run of its own"])
            continue
        here = [pilot for pilot in pilots if pilot["cluster"] == share.cluster]
        live = [pilot for pilot in here if pilot["state"] != "ended"]
        running = sum(pilot["state"] == "running" for pilot in live)
        text = f"{running} pilots run, {len(live) - running} wait, {len(here) - len(live)} ended"
        done = sum(pilot["succeeded"] for pilot in here)
        why = f"; {share.state}: {share.reason}" if share.reason else ""
        rows.append([share.cluster, f"{text}; {done} items done{why}"])
    if page := _page_of(campaign):
        rows.append(["page", page])
    print_table([f"{campaign.kind} {campaign.id[:8]}", campaign.name], rows)


def _page_of(campaign: Campaign) -> str:
    """The address of a campaign's page in Prefect; "" where there is none, or no server."""
    from slurm_ray_flow.blocks.server.client import api_in_use, ui_url_of

    api = api_in_use() if campaign.flow_run_id else None
    return f"{ui_url_of(api.url)}/runs/flow-run/{campaign.flow_run_id}" if api else ""


def items(campaign: Name, *, first: int = 0, count: int = 100, json: Json = False) -> None:
    """Show the items of a campaign, in order.

    Examples:
        srf grid items 3f2a --first 1000

    Args:
        campaign: Its id, or the start of it.
        first: The number of the first item.
        count: How many to show.
    """
    client = grid_client()
    found = client.items(client.campaign(campaign).id, first, count)
    if json:
        print_json(found)
        return
    rows = [
        [str(row["number"]), row["state"], str(row["attempts"] or ""), _seconds(row["seconds"]), row["error"]]
        for row in found
    ]
    print_table(["item", "state", "attempts", "took", "error"], rows)


def events(campaign: Name, *, json: Json = False) -> None:
    """Show what went wrong in a campaign: a line for each kind of failure, with its count.

    Examples:
        srf grid events 3f2a

    Args:
        campaign: Its id, or the start of it.
    """
    client = grid_client()
    found = client.events(client.campaign(campaign).id)
    if json:
        print_json(found)
    elif found:
        rows = [
            [
                str(row["id"]),
                str(row["count"]),
                row["code"],
                row["cluster"],
                clock(row["last_at"]),
                row["group"],
                row["message"],
            ]
            for row in found
        ]
        print_table(["event", "count", "kind", "cluster", "last", "group", "message"], rows)
    else:
        print_text("Nothing went wrong.")


def pause(campaign: Name, *, json: Json = False) -> None:
    """Begin no more items of a campaign; those that run go on.

    Examples:
        srf grid pause 3f2a

    Args:
        campaign: Its id, or the start of it.
    """
    _change(campaign, "pause", json)


def resume(campaign: Name, *, json: Json = False) -> None:
    """Go on with a paused campaign, also on clusters that were closed to it after failures.

    Examples:
        srf grid resume 3f2a

    Args:
        campaign: Its id, or the start of it.
    """
    _change(campaign, "resume", json)


def cancel(
    campaign: Name, *, item: Annotated[tuple[int, ...], Parameter(negative="")] = (), json: Json = False
) -> None:
    """End a campaign: items that run are ended, the others never begin. Outcomes so far are kept.

    With --item only that item: the others go on. One that a pilot has begun runs to its end there, but has no value.

    Examples:
        srf grid cancel 3f2a

        srf grid cancel 3f2a --item 17 --item 18

    Args:
        campaign: Its id, or the start of it.
        item: The number of an item, instead of all. May be given again.
    """
    if not item:
        _change(campaign, "cancel", json)
        return
    client = grid_client()
    count = client.cancel_items(client.campaign(campaign).id, sorted(set(item)))
    found = client.campaign(campaign)
    if json:
        print_json({**found.to_json(), "cancelled_now": count})
    else:
        print_text(f"{count} items of campaign {found.id[:8]} are cancelled; it is {found.state.value}.")


def _change(name: str, verb: str, json: bool) -> None:
    client = grid_client()
    campaign = client.change(client.campaign(name).id, verb)
    if json:
        print_json(campaign.to_json())
    else:
        done = f"{campaign.succeeded} of {campaign.total} items are done"
        print_text(f"{campaign.kind.capitalize()} {campaign.id[:8]} is {campaign.state.value}; {done}.")


def grid_client() -> GridClient:
    """The client of this home's engine."""
    from slurm_ray_flow.grid.client import GridClient

    return GridClient(tell)


def clock(seconds: float | None) -> str:
    """A time of day for people."""
    if not seconds:
        return ""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).astimezone():%Y-%m-%d %H:%M}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds) if seconds >= 1 else f"{seconds:.3f} s"
