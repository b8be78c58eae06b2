"""The service: the process of the grid's engine, and its API on loopback.

    python -m slurm_ray_flow.grid.service

`blocks/grid_engine.py` starts it, and starts it anew where it was killed.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import hmac
import logging
import signal
import socket
import sys
import threading
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from slurm_ray_flow.blocks.grid_engine import HOST, EngineFiles, write_engine_state
from slurm_ray_flow.blocks.server.files import only_process, server_files
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError, UnknownCampaignError
from slurm_ray_flow.core.grid.model import Campaign, CampaignState
from slurm_ray_flow.grid import clusters, requests
from slurm_ray_flow.grid.campaign_flow import CampaignFlows
from slurm_ray_flow.grid.engine import Engine
from slurm_ray_flow.grid.launching import cap_of_kind, cores_of, launch_pilot, size_of, workers_of
from slurm_ray_flow.grid.store import Store, default_url

MOST_ITEMS = 10_000
"""The most items of one answer."""
log = logging.getLogger("slurm_ray_flow.grid")


def api_of(engine: Engine, token: str) -> FastAPI:
    """The API of an engine for clients that know the token."""

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "the token of this home's grid is missing or wrong")

    api = FastAPI(dependencies=[Depends(check_token)], docs_url=None, redoc_url=None, openapi_url=None)
    api.include_router(routes_to_read(engine.store))
    api.include_router(routes_to_change(engine))
    api.include_router(routes_of_clusters(engine))

    @api.exception_handler(SlurmRayFlowError)
    async def explain(_: Request, error: SlurmRayFlowError) -> JSONResponse:
        status = 404 if isinstance(error, UnknownCampaignError) else 409
        content = {"kind": type(error).__name__, "what": error.what, "where": error.where, "advice": error.advice}
        return JSONResponse(content, status)

    return api


def routes_to_read(store: Store) -> APIRouter:
    """What clients read."""
    routes = APIRouter(prefix="/campaigns")

    @routes.get("/of-event/{number}")
    def campaign_of_event(number: int) -> dict[str, Any]:
        return store.campaign(requests.campaign_of_event(store, number)).to_json()

    @routes.get("")
    def campaigns() -> list[dict[str, Any]]:
        return [campaign.to_json() for campaign in store.campaigns()]

    @routes.get("/{name}")
    def campaign(name: str) -> dict[str, Any]:
        return store.campaign(name).to_json()

    @routes.get("/{name}/items")
    def items(name: str, first: int = 0, count: int = 1000) -> list[dict[str, Any]]:
        rows = store.items(store.campaign(name).id, first, min(count, MOST_ITEMS))
        return [dataclasses.asdict(row) for row in rows]

    @routes.get("/{name}/items/{number}/log")
    def log_of_item(name: str, number: int) -> dict[str, Any]:
        return requests.log_of_item(store, store.campaign(name), number)

    @routes.get("/{name}/items/{number}/explanation")
    def explanation(name: str, number: int) -> dict[str, str]:
        return {"text": requests.explanation(store, store.campaign(name), number)}

    @routes.get("/{name}/description")
    def description(name: str) -> dict[str, Any]:
        return requests.description(store.campaign(name))

    @routes.get("/{name}/pilots")
    def pilots(name: str) -> list[dict[str, Any]]:
        return [dataclasses.asdict(pilot) for pilot in store.pilots(store.campaign(name).id)]

    @routes.get("/{name}/events")
    def events(name: str) -> list[dict[str, Any]]:
        return [dataclasses.asdict(event) for event in store.events(store.campaign(name).id)]

    return routes


def routes_to_change(engine: Engine) -> APIRouter:
    """What clients change."""
    routes = APIRouter(prefix="/campaigns")

    @routes.post("", status_code=201)
    def add(body: dict[str, Any]) -> dict[str, Any]:
        campaign = campaign_from(body)
        try:
            return engine.store.campaign(campaign.id).to_json()  # the answer to the first request was lost
        except UnknownCampaignError:
            engine.add(campaign)
        engine.wake()
        return engine.store.campaign(campaign.id).to_json()

    @routes.post("/{name}/items")
    def add_items(name: str, body: dict[str, int]) -> dict[str, Any]:
        campaign = engine.store.campaign(name)
        requests.add_items(engine, campaign, body["first"], body["count"])
        return engine.store.campaign(campaign.id).to_json()

    @routes.post("/{name}/resubmit")
    def resubmit(name: str, body: dict[str, list[int] | None]) -> dict[str, int]:
        return {"count": requests.resubmit(engine, engine.store.campaign(name), body.get("only"))}

    @routes.post("/{name}/cancel-items")
    def cancel_items(name: str, body: dict[str, list[int]]) -> dict[str, int]:
        return {"count": requests.cancel_items(engine, engine.store.campaign(name), body["only"])}

    @routes.post("/{name}/fix")
    def fix(name: str, body: dict[str, list[int] | None]) -> dict[str, int]:
        return {"count": requests.fix(engine, engine.store.campaign(name), body.get("events"))}

    @routes.delete("/{name}")
    def purge(name: str) -> dict[str, Any]:
        campaign = engine.store.campaign(name)
        requests.purge(engine, campaign)
        return campaign.to_json()

    @routes.post("/{name}/{verb}")
    def change(name: str, verb: str) -> dict[str, Any]:
        change_state(engine, engine.store.campaign(name), verb)
        return engine.store.campaign(name).to_json()

    return routes


def routes_of_clusters(engine: Engine) -> APIRouter:
    """Clusters as campaigns use them. A drain concerns all users."""
    routes = APIRouter(prefix="/clusters")

    @routes.get("")
    def in_use() -> list[dict[str, Any]]:
        return [dataclasses.asdict(cluster) for cluster in clusters.in_use(engine)]

    @routes.post("/{name}/drain")
    def drain(name: str, body: dict[str, str]) -> dict[str, Any]:
        return dataclasses.asdict(clusters.drain(engine, name, body["user"], body.get("reason", "")))

    @routes.post("/{name}/resume")
    def resume(name: str) -> dict[str, bool]:
        return {"was_drained": clusters.resume(engine, name)}

    return routes


def change_state(engine: Engine, campaign: Campaign, verb: str) -> None:
    """Pause, resume or cancel a campaign.

    Raises:
        GridError: there is no such verb, or the campaign has ended.
    """
    if verb not in {"pause", "resume", "cancel"}:
        raise HTTPException(404, f"a campaign can't {verb}")
    if verb == "cancel" and campaign.state is CampaignState.CANCELLED:
        return
    if campaign.state.final:
        raise GridError(
            f"campaign {campaign.id[:8]} has ended: {campaign.state.value}", advice="start it anew with its values"
        )
    if verb == "cancel":
        engine.cancel(campaign.id)
    elif verb == "pause":
        engine.pause(campaign.id)
    else:
        engine.resume(campaign)
    engine.wake()


def campaign_from(body: dict[str, Any]) -> Campaign:
    """The campaign of a request.

    Raises:
        GridError: the request is not one of our clients'.
    """
    try:
        return Campaign.from_json(body)
    except (KeyError, TypeError, ValueError) as error:
        raise GridError(f"this is no campaign: {error}", advice="use a client of the engine's own version") from error


def main() -> int:
    """Serve until a signal."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    files = EngineFiles()
    with only_process(server_files(), "grid", patience=10.0) as is_only:
        if not is_only:
            log.error("another engine runs for this home")
            return 1
        store = Store(default_url())
        store.migrate()
        gc.freeze()  # what is imported stays: to look through it again and again took a third of the engine's time
        cap = functools.cache(cap_of_kind)
        engine = Engine(store, launch_pilot, functools.cache(workers_of), functools.cache(cores_of), cap)
        return _serve(engine, files)


def _serve(engine: Engine, files: EngineFiles) -> int:
    listener = socket.create_server((HOST, 0), backlog=128)
    config = uvicorn.Config(api_of(engine, files.token()), log_level="warning", lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=engine.run, name="srf-grid-engine", daemon=True)
    thread.start()
    CampaignFlows(engine, functools.cache(size_of)).start()
    write_engine_state(int(listener.getsockname()[1]))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server.run(sockets=[listener])  # until SIGTERM or SIGINT
    engine.stop()
    thread.join(10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
