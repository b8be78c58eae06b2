"""Tells a web hook (Slack, Mattermost, Teams, a program of yours) of what happens on the clusters.

    python -m slurm_ray_flow.deployments.notify [EVENT ...] [--cause CAUSE ...]

asks for the hook's address, which is a secret, and keeps it in Prefect; with SRF_WEBHOOK_URL it asks nothing. Without
events it tells of all. It makes one automation for each, which Prefect's UI shows, and where they can be changed.
"""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Callable, Sequence
from typing import cast

from prefect.blocks.webhook import Webhook
from prefect.types import SecretDict
from pydantic import SecretStr

from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.client import api_in_use
from slurm_ray_flow.core import prefect_events as events
from slurm_ray_flow.core.errors import CAUSES, OptionError, ServerError

PREFIX = "slurm-ray-flow."
ALL = (events.CLUSTER_DOWN, events.CLUSTER_UP, events.RUN_FAILED, events.WARM_IDLE, *events.OF_THE_GRID)
NAMES = tuple(name.removeprefix(PREFIX) for name in ALL)
BLOCK = "srf-webhook"
SEVERAL = ("user_code", "launch")
"""Causes that are no errors of ours."""

_OF_CAMPAIGN = (
    "campaign {{ event.payload.name }} [{{ event.payload.campaign[:8] }}]"
    "{% if event.payload.cluster %} on {{ event.payload.cluster }}{% endif %}: {{ event.payload.message }}"
)
_TEXTS = {
    events.CLUSTER_DOWN: "{{ event.payload.cluster }} can't be used: {{ event.payload.why }}",
    events.CLUSTER_UP: "{{ event.payload.cluster }} can be used again",
    events.RUN_FAILED: "{{ event.payload.function }} on {{ event.payload.cluster }} failed "
    "({{ event.payload.cause }}): {{ event.payload.message }} [run {{ event.payload.run_id }}]",
    events.WARM_IDLE: "run {{ event.payload.run_id }} idles on {{ event.payload.cluster }} since "
    "{{ event.payload.idle }} and costs {{ event.payload.costs }}: {{ event.payload.release }}",
    **dict.fromkeys(events.OF_THE_GRID, _OF_CAMPAIGN),
}


def notify(url: str, on: Sequence[str] = NAMES, causes: Sequence[str] = ()) -> list[str]:
    """Have a web hook called when something happens. Doing it again changes what was there.

    Args:
        url: the hook's address; it gets `{"text": ...}` by POST.
        on: what to tell of: "cluster.down", "cluster.up", "run.failed", "warm.idle"; of campaigns "grid.ended",
            "grid.quarantined" and the others that `NAMES` has.
        causes: of failed runs only those with one of these causes, such as "out_of_memory"; all without.

    Returns:
        The names of the automations.

    Raises:
        OptionError: there is no such event or cause.
        ServerError: the Prefect server can't be started.
    """
    _check("event", on, NAMES)
    _check("cause", causes, (*CAUSES, *SEVERAL))
    with connected(ensure_server(lambda _: None)):
        api = api_in_use()
        if api is None:
            raise ServerError("No Prefect API is configured.", advice="Set PREFECT_API_URL, or use srf up.")
        block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
        document = cast(Callable[..., object], block.save)(BLOCK, overwrite=True, _sync=True)
        return [_automate(api, PREFIX + name, document, causes) for name in on]


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise OptionError(f"there is no {what} {name!r}", advice=f"there are {', '.join(known)}")


def _automate(api: Api, event: str, document: object, causes: Sequence[str]) -> str:
    name = f"slurm-ray-flow: tell of {event.removeprefix(PREFIX)}"
    only = {"slurm-ray-flow.cause": list(causes)} if causes and event == events.RUN_FAILED else {}
    wanted = {
        "name": name,
        "description": f"Calls the web hook of the block {BLOCK} at each event {event}.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": [event],
            "match": only,
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [{"type": "call-webhook", "block_document_id": str(document), "payload": _payload(event)}],
    }
    found = api.post("/automations/filter", {"automations": {"name": {"any_": [name]}}})
    if found:
        api.put(f"/automations/{found[0]['id']}", wanted)
    else:
        api.post("/automations/", wanted)
    return name


def _payload(event: str) -> str:
    return f'{{"text": {{% filter tojson %}}{_TEXTS[event]}{{% endfilter %}}}}'


def main() -> None:
    """Be the command."""
    parser = argparse.ArgumentParser(prog="python -m slurm_ray_flow.deployments.notify")
    parser.add_argument("event", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--cause", action="append", default=[], help="of failed runs only those with this cause")
    given = parser.parse_args()
    try:
        url = os.environ.get("SRF_WEBHOOK_URL") or getpass.getpass("The hook's address: ")
        for name in notify(url, given.event or NAMES, given.cause):
            print(name)  # noqa: T201 - it is a command
    except OptionError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
