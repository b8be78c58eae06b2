"""One flow run in Prefect for each campaign: its state, its progress and its page, and what people do to it there.

A thread of the engine compares every few seconds what campaigns are with what Prefect shows. It remembers nothing that
the tables and Prefect do not have, so that the next engine goes on, and nobody waits for a server that is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.blocks.artifacts import Artifact
from slurm_ray_flow.blocks.server.api import Api, status_of
from slurm_ray_flow.core.artifacts import ArtifactContent, artifact_key
from slurm_ray_flow.core.errors import ServerError, UnknownCampaignError
from slurm_ray_flow.core.grid import campaign_page
from slurm_ray_flow.core.grid.campaign_page import OURS, FlowState, PilotSize
from slurm_ray_flow.core.grid.model import CAMPAIGN, Campaign, CampaignState, Pilot
from slurm_ray_flow.grid import clock
from slurm_ray_flow.grid.announcing import api_of_server
from slurm_ray_flow.tasks.page import run_page

if TYPE_CHECKING:
    from slurm_ray_flow.grid.engine import Engine

FLOW = "campaign-of-items"
"""The name of the flow in Prefect."""
STEP_SECONDS, RETRY_SECONDS = 3.0, 30.0
"""Seconds between two looks at Prefect, and until the next one after a failure."""
PROGRESS_SECONDS, LONGEST_PROGRESS, PAGE_SECONDS = 5.0, 60.0, 60.0
"""The least seconds between two changes of the progress, which increase in long campaigns up to the second number; and
of the page."""
RECENT_SECONDS = 7 * 86400.0
"""Campaigns that ended longer ago are not shown any more."""
SHORT_SECONDS = 60.0
"""A campaign that goes on again, and ends between two looks, is found for so long."""
MOST_RUNS = 200
"""The most flow runs in one answer of Prefect."""
log = logging.getLogger("slurm_ray_flow.grid")


def flow_run_of(api: Api, campaign: Campaign) -> str:
    """The id of a campaign's flow run, which is made where there is none; also of several callers, one makes it.

    Raises:
        ServerError: the server can't be reached or refuses it.
    """
    flow = api.post("/flows/", {"name": FLOW})
    clusters = [share.cluster for share in campaign.clusters]
    run = {
        "flow_id": flow["id"],
        "name": campaign_page.name_of(campaign),
        "idempotency_key": campaign.id,
        "tags": campaign_page.tags_of_campaign(campaign),
        "parameters": {"campaign": campaign.id, "function": campaign.function, "clusters": clusters},
        "state": {"type": campaign_page.RUNNING, "message": campaign_page.began(campaign)},
    }
    return str(api.post("/flow_runs/", run)["id"])


class CampaignFlows(threading.Thread):
    """Keeps the flow runs of campaigns like the campaigns, and obeys people who cancel, pause or resume them there.

    Args:
        engine: the engine that has the campaigns.
        size_of: what a pilot of a campaign has on a cluster.
        api: gives Prefect's API.
    """

    def __init__(
        self, engine: Engine, size_of: Callable[[str, str], PilotSize], api: Callable[[], Api] = api_of_server
    ) -> None:
        super().__init__(name="srf-grid-flows", daemon=True)
        self._engine, self._store, self._size_of, self._api = engine, engine.store, size_of, api
        self._followed: set[str] | None = None
        self._artifacts: dict[str, _CampaignArtifacts] = {}
        self._is_away, self._looked_at = False, 0.0

    def run(self) -> None:
        """Make steps until the engine stops."""
        pause = STEP_SECONDS
        while not self._engine.stopped.wait(pause):
            pause = RETRY_SECONDS
            try:
                self.step()
                self._is_away, pause = False, STEP_SECONDS
            except ServerError as error:
                if not self._is_away:
                    log.warning("campaigns can't be shown in Prefect for now: %s", error.what)
                self._is_away = True
            except Exception:
                log.exception("campaigns can't be shown in Prefect for now")

    def step(self) -> None:
        """Make Prefect show what the campaigns are, once.

        Raises:
            ServerError: the server does not answer.
        """
        campaigns = self._to_show()
        if not campaigns:
            return
        api = self._api()
        shown = _shown(api, [campaign.flow_run_id for campaign in campaigns if campaign.flow_run_id])
        for campaign in campaigns:
            try:
                self._show(api, campaign, shown.get(campaign.flow_run_id))
            except UnknownCampaignError:  # it was removed just now
                self._forget(campaign.id)
            except ServerError as error:
                if status_of(error) is None:
                    raise
                log.warning("campaign %s can't be shown in Prefect: %s", campaign.id[:8], error.what)

    def _to_show(self) -> list[Campaign]:
        """The campaigns that go on, that have no flow run yet, or whose flow run may lack its last state."""
        since, ended_since = clock.now() - RECENT_SECONDS, self._looked_at - SHORT_SECONDS
        self._looked_at = clock.now()
        if self._followed is None:
            found = self._store.campaigns()
            campaigns = [one for one in found[:MOST_RUNS] if one.ended_at is None or one.ended_at > since]
        else:
            campaigns = self._store.campaigns_to_show(self._followed, since, ended_since)
        campaigns = [one for one in campaigns if one.kind == CAMPAIGN and self._engine.owns(one)]
        self._followed = {campaign.id for campaign in campaigns}
        return campaigns

    def _forget(self, campaign_id: str) -> None:
        """Follow a campaign no longer."""
        self._artifacts.pop(campaign_id, None)
        if self._followed is not None:
            self._followed.discard(campaign_id)

    def _show(self, api: Api, campaign: Campaign, shown: dict[str, Any] | None) -> None:
        state = _state_in(shown)
        if state is None:
            flow_run_id = flow_run_of(api, campaign)
            self._store.set_flow_run(campaign.id, flow_run_id)
            state = _state_in(_shown(api, [flow_run_id]).get(flow_run_id))
        else:
            self._obey(campaign, state)
        campaign = self._store.campaign(campaign.id)
        pilots = self._store.pilots(campaign.id)
        live = sum(pilot.state != "ended" for pilot in pilots)
        wanted = campaign_page.flow_state(campaign, live)
        is_set = state is not None and state.type == wanted.type and _is_ours(state)
        is_last = wanted.final and not live
        if not (is_set and is_last and campaign.id not in self._artifacts):  # else an earlier process has sent all
            self._send_artifacts(api, campaign, pilots, is_last)
        if not is_set:
            body = {"state": {"type": wanted.type, "message": wanted.message[:1000]}, "force": True}
            api.post(f"/flow_runs/{campaign.flow_run_id}/set_state", body)
        if is_last:
            self._forget(campaign.id)

    def _send_artifacts(self, api: Api, campaign: Campaign, pilots: Sequence[Pilot], is_last: bool) -> None:
        artifacts = self._artifacts.setdefault(campaign.id, _CampaignArtifacts(campaign))
        if artifacts.progress_is_due(is_last):
            artifacts.send(api, campaign, campaign_page.progress(campaign))
        if artifacts.page_is_due(is_last):
            events = self._store.events(campaign.id, open_only=False)
            sizes = self._sizes(campaign)
            content = campaign_page.page(campaign, pilots, events, sizes, run_page, clock.now())
            artifacts.send(api, campaign, content)

    def _obey(self, campaign: Campaign, state: FlowState) -> None:
        """Do to a campaign what a person did to its flow run."""
        if campaign.state.final or _is_ours(state):
            return
        if state.type in {campaign_page.CANCELLING, campaign_page.CANCELLED}:
            self._engine.cancel(campaign.id, "a person cancelled it in Prefect")
        elif state.type == campaign_page.PAUSED:
            self._engine.pause(campaign.id, "a person paused it in Prefect")
        elif campaign.state is CampaignState.PAUSED and state.type in {campaign_page.RUNNING, "SCHEDULED"}:
            self._engine.resume(campaign)
        self._engine.wake()

    def _sizes(self, campaign: Campaign) -> Mapping[str, PilotSize]:
        sizes = {}
        for share in campaign.clusters:
            try:
                sizes[share.cluster] = self._size_of(campaign.id, share.cluster)
            except (OSError, KeyError, ValueError):  # the folder was removed
                continue
        return sizes


class _CampaignArtifacts:
    """The artifacts of one campaign's flow run, which change in place."""

    def __init__(self, campaign: Campaign) -> None:
        self._name, self._created = campaign.name, campaign.created
        self._ids: dict[tuple[str, str], str] = {}
        self._sent: dict[str, ArtifactContent] = {}
        self._next_progress = self._next_page = 0.0

    def progress_is_due(self, last: bool) -> bool:
        """Whether the progress may be sent now."""
        now = time.monotonic()
        if not last and now < self._next_progress:
            return False
        age = time.time() - self._created
        self._next_progress = now + min(max(PROGRESS_SECONDS, age / 50), LONGEST_PROGRESS)
        return True

    def page_is_due(self, last: bool) -> bool:
        """Whether the page may be sent now."""
        now = time.monotonic()
        if not last and now < self._next_page:
            return False
        self._next_page = now + PAGE_SECONDS
        return True

    def send(self, api: Api, campaign: Campaign, content: ArtifactContent) -> None:
        """Send an artifact, or its newer state; nothing where it is the same.

        Raises:
            ServerError: the server can't be reached or refuses it.
        """
        if self._sent.get(content.what) == content:
            return
        key = artifact_key(content.what, self._name)
        artifact = Artifact(key, content.type, content.data, content.description)
        place = (campaign.flow_run_id, key)
        self._ids[place] = _send(api, artifact, campaign.flow_run_id, self._ids.get(place))
        self._sent[content.what] = content


def _send(api: Api, artifact: Artifact, flow_run_id: str, known: str | None) -> str:
    """Change a flow run's artifact, or make it; gives its id."""
    content = {"data": artifact.data, "description": artifact.description}
    if known is None:
        query = {"key": {"any_": [artifact.key]}, "flow_run_id": {"any_": [flow_run_id]}}
        found = api.post("/artifacts/filter", {"artifacts": query, "limit": 1})
        known = str(found[0]["id"]) if found else None
    if known is None:
        owned = {"key": artifact.key, "type": artifact.type, "flow_run_id": flow_run_id}
        return str(api.post("/artifacts/", {**owned, **content})["id"])
    api.patch(f"/artifacts/{known}", content)
    return known


def _shown(api: Api, flow_run_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The flow runs of these ids as Prefect shows them."""
    wanted = list(flow_run_ids)
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(wanted), MOST_RUNS):
        query = {"flow_runs": {"id": {"any_": wanted[start : start + MOST_RUNS]}}, "limit": MOST_RUNS}
        found |= {str(run["id"]): run for run in api.post("/flow_runs/filter", query)}
    return found


def _state_in(flow_run: dict[str, Any] | None) -> FlowState | None:
    """The state that Prefect shows; None without a flow run."""
    if flow_run is None:
        return None
    state = flow_run.get("state") or {}
    return FlowState(str(flow_run.get("state_type") or ""), str(state.get("message") or ""))


def _is_ours(state: FlowState) -> bool:
    return state.message.startswith(OURS)
