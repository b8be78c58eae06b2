"""`srf grid`: the items of a campaign, their values and output; its events; its progress and its removal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.grid import AT_WORK, Name, grid_client
from slurm_ray_flow.cli.output import Json, Switch, as_json, print_json, print_text, tell

if TYPE_CHECKING:
    from slurm_ray_flow.core.grid.model import Campaign
    from slurm_ray_flow.grid.client import GridClient

LINE_SECONDS = 10.0
"""The least seconds between two lines of `watch` where there is no terminal."""
LOOK_SECONDS = 1.0
NO_DEFAULT = Parameter(show_default=False)


def results(
    campaign: Name,
    *,
    to: Annotated[Path | None, NO_DEFAULT] = None,
    wait: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Write the values of a campaign so far, a line each in the order of its items; or a table of all items.

    Examples:
        srf grid results 3f2a

        srf grid results 3f2a --wait --to out.csv

    Args:
        campaign: Its id, or the start of it.
        to: Write a table of all items to this file instead: .csv, .jsonl or .parquet.
        wait: Wait first until the campaign has ended.
    """
    from slurm_ray_flow.interface import campaign as campaigns

    find_modules_here()
    client = grid_client()
    found = campaigns.Campaign.attach(campaign)
    if wait:
        found.wait()
    if to is not None:
        count = found.to_table(to)
        what = f"Wrote {count} rows to {to}."
        print_json({"campaign": found.id, "file": str(to.absolute()), "rows": count}) if json else print_text(what)
        return
    for row, value in _values(found.status(), client):
        if json:
            kept = {name: row[name] for name in ("number", "state", "seconds", "error")}
            print_json({**kept, "value": as_json(value)}, compact=True)
        else:
            text = repr(value) if row["state"] == "succeeded" else f"{row['state']}: {row['error']}"
            print_text(f"{row['number']}\t{text}")


def _values(campaign: Campaign, client: GridClient) -> Iterator[tuple[dict[str, Any], Any]]:
    """The items that have ended, with their values."""
    from slurm_ray_flow.interface.campaign_outcomes import OutcomeReader, value_of

    reader = OutcomeReader(campaign.id)
    for first in range(0, campaign.total, 1000):
        for row in client.items(campaign.id, first, min(1000, campaign.total - first)):
            if row["state"] == "succeeded":
                yield row, value_of(reader.frame_at(row["offset"], row["length"]))
            elif row["state"] not in {"waiting", "leased"}:
                yield row, None


def find_modules_here() -> None:
    """Have Python find the modules of the working directory, which values may need."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def logs(campaign: Name, item: int, *, json: Json = False) -> None:
    """Show what an item printed in its last attempt that has ended; of more than a MiB its end.

    Examples:
        srf grid logs 3f2a 17

    Args:
        campaign: Its id, or the start of it.
        item: The item's number.
    """
    found = grid_client().log(campaign, item)
    if json:
        print_json(found)
    elif found["text"]:
        sys.stdout.write(found["text"])
    elif found["ended"]:
        print_text(f"Item {item} printed nothing.")
    else:
        print_text(f"Item {item} is {found['state']}; what it prints can be read when an attempt of it has ended.")


def explain(campaign: Name, item: int, *, json: Json = False) -> None:
    """Say why an item waits, or where it is.

    Examples:
        srf grid explain 3f2a 17

    Args:
        campaign: Its id, or the start of it.
        item: The item's number.
    """
    client = grid_client()
    text = client.explanation(campaign, item)
    if json:
        [row] = client.items(campaign, item, 1)
        print_json({**row, "text": text})
    else:
        print_text(text)


def fix(which: str, *, resubmit: Annotated[bool, Switch] = False, json: Json = False) -> None:
    """Close an event, or all events of a campaign; clusters that they closed to the campaign are open again.

    Examples:
        srf grid fix 12

        srf grid fix 3f2a91c0 --resubmit

    Args:
        which: An event's number, as `srf grid events` shows it, or a campaign's id of 8 letters or more.
        resubmit: Run the campaign's items without a value again, too.
    """
    client = grid_client()
    is_event = which.isdecimal() and len(which) < 8
    found = client.campaign_of_event(int(which)) if is_event else client.campaign(which)
    closed = client.fix(found.id, [int(which)] if is_event else None)
    again = client.resubmit(found.id) if resubmit else 0
    found = client.campaign(found.id)
    if json:
        print_json({**found.to_json(), "closed": closed, "resubmitted_now": again})
        return
    text = f"Closed {closed} events of campaign {found.id[:8]}, which is {found.state.value}."
    print_text(text + (f" {again} items run again." if resubmit else ""))


def resubmit(
    campaign: Name, *, item: Annotated[tuple[int, ...], Parameter(negative="")] = (), json: Json = False
) -> None:
    """Run items without a value again: those that failed, crashed or were cancelled. A campaign that has ended goes on.

    Examples:
        srf grid resubmit 3f2a

        srf grid resubmit 3f2a --item 17 --item 18

    Args:
        campaign: Its id, or the start of it.
        item: The number of an item, all by default. May be given again.
    """
    client = grid_client()
    count = client.resubmit(client.campaign(campaign).id, sorted(set(item)) if item else None)
    found = client.campaign(campaign)
    if json:
        print_json({**found.to_json(), "resubmitted_now": count})
    else:
        print_text(f"{count} items of campaign {found.id[:8]} run again; it is {found.state.value}.")


def purge(campaign: Name, *, json: Json = False) -> None:
    """Remove a campaign that has ended, with its arguments and its values. Tables that were written stay.

    Examples:
        srf grid purge 3f2a

    Args:
        campaign: Its id, or the start of it.
    """
    client = grid_client()
    found = client.campaign(campaign)
    client.purge(found.id)
    if json:
        print_json({"campaign": found.id, "purged": True})
    else:
        print_text(f"Removed campaign {found.id[:8]} ({found.name}) with {found.total} items and their values.")


def watch(campaign: Name, *, json: Json = False) -> None:
    """Show the counts of a campaign until it has ended. Ctrl-C ends the watching alone: the campaign goes on.

    The exit code is 0 if all items have a value, else 1.

    Examples:
        srf grid watch 3f2a

    Args:
        campaign: Its id, or the start of it.
    """
    client = grid_client()
    found = client.campaign(campaign)
    try:
        found = _shown_until_the_end(client, found, json)
    except KeyboardInterrupt:
        tell(f"\nCampaign {found.id[:8]} goes on; `srf grid cancel {found.id[:8]}` would end it.")
        raise
    if found.succeeded < found.total:
        sys.exit(1)


def _shown_until_the_end(client: GridClient, found: Campaign, json: bool) -> Campaign:
    in_place = sys.stdout.isatty() and not json
    told, told_at = "", -LINE_SECONDS
    while True:
        text = _counts(found)
        if in_place:
            sys.stdout.write(f"\r\033[K{text}")
            sys.stdout.flush()
        elif text != told and (found.state.final or time.monotonic() - told_at >= LINE_SECONDS):
            print_json(found.to_json(), compact=True) if json else print_text(text)
            sys.stdout.flush()
            told, told_at = text, time.monotonic()
        if found.state.final and (found.ended_at is not None or found.ended == found.total):
            break
        time.sleep(LOOK_SECONDS)
        found = client.campaign_to_follow(found.id, tell)
    if in_place:
        print_text("")
    return found


def _counts(campaign: Campaign) -> str:
    reason = campaign.reason or (f"it waits, since {campaign.obstacle}" if campaign.obstacle else "")
    reason = f": {reason}" if reason else ""
    percent = 100 * campaign.ended // campaign.total if campaign.total else 100
    counts = (
        f"{campaign.succeeded} done, {campaign.failed} failed, {campaign.leased} {AT_WORK[campaign.kind]}, "
        f"{campaign.unleased} wait"
    )
    return f"{campaign.id[:8]}  {percent:3d} %  {counts} of {campaign.total}; {campaign.state.value}{reason}"
