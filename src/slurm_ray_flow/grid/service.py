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
from collections.abc import Iterable
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.grid_engine import API_HEADER, API_VERSION, HOST, EngineFiles, write_engine_state
from slurm_ray_flow.blocks.server.files import only_process, server_files
from slurm_ray_flow.core.errors import (
    GridError,
    GridTokenError,
    NotAllowedError,
    SlurmRayFlowError,
    UnknownCampaignError,
)
from slurm_ray_flow.core.grid.model import MAP, Campaign, CampaignState, User
from slurm_ray_flow.core.home import home
from slurm_ray_flow.grid import clusters, requests
from slurm_ray_flow.grid.campaign_flow import CampaignFlows
from slurm_ray_flow.grid.engine import Engine
from slurm_ray_flow.grid.launching import cap_of_kind, cores_of, launch_pilot, size_of, workers_of
from slurm_ray_flow.grid.maps import calls_of, only_campaign
from slurm_ray_flow.grid.store import Store, default_url

MOST_ITEMS = 10_000
"""The most items of one answer."""
log = logging.getLogger("slurm_ray_flow.grid")


def api_of(engine: Engine, token: str) -> FastAPI:
    """The API of an engine for clients that know the token of its home, or have one of a user's.

    Each request has a user (`_user_of`). All users read; what they do not own they read in part (`for_others`).
    """

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if hmac.compare_digest(given.encode(), token.encode()):
            request.state.user = engine.user or ONLY_USER
        elif given:
            request.state.user = engine.store.users.of_token(given)
        else:
            raise GridTokenError("a request to the grid's engine has no token", advice="use `srf grid`, which has it")

    api = FastAPI(dependencies=[Depends(check_token)], docs_url=None, redoc_url=None, openapi_url=None)
    for routes in (routes_to_read(engine.store), routes_to_look_into(engine), routes_to_change(engine)):
        api.include_router(routes)
    for routes in (routes_of_users(engine), routes_of_clusters(engine)):
        api.include_router(routes)

    @api.middleware("http")
    async def name_version(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers[API_HEADER] = API_VERSION
        return answer

    @api.get("/state")
    def state() -> dict[str, str]:
        return {"trouble": engine.troubles.text}

    @api.post("/maps/{name}")
    def show_map(name: str, user: Caller) -> dict[str, Any]:
        return shown_map(engine, name, user).to_json()

    @api.exception_handler(SlurmRayFlowError)
    async def explain(_: Request, error: SlurmRayFlowError) -> JSONResponse:
        status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 409)
        content = {"kind": type(error).__name__, "what": error.what, "where": error.where, "advice": error.advice}
        return JSONResponse(content, status)

    return api


def shown_map(engine: Engine, name: str, user: User) -> Campaign:
    """The row of a map of this home, as the map is now.

    Raises:
        NotAllowedError: the home is another user's.
    """
    if engine.user is not None and user.name != engine.user.name:
        what = f"the maps of this home are {engine.user.name}'s"
        raise NotAllowedError(what, advice="ask the engine of your own home")
    engine.maps.look(name)
    return engine.store.campaign(name)


ONLY_USER = User("", is_admin=True)
"""The user of a database that one home has to itself."""
STATUSES = {GridTokenError: 401, NotAllowedError: 403, UnknownCampaignError: 404}


def _user_of(request: Request) -> User:
    """Whose request it is, as `check_token` has found."""
    user: User = request.state.user
    return user


Caller = Annotated[User, Depends(_user_of)]


def routes_to_read(store: Store) -> APIRouter:
    """What all users read. What items were given, have printed or raised is for owners alone."""
    routes = APIRouter(prefix="/campaigns")

    def shown(campaign: Campaign, user: User) -> dict[str, Any]:
        return (campaign if user.may_change(campaign) else campaign.for_others()).to_json()

    def rows(campaign: Campaign, user: User, found: Iterable[Any], *hidden: str) -> list[dict[str, Any]]:
        blank = {} if user.may_change(campaign) else dict.fromkeys(hidden, "")
        return [{**dataclasses.asdict(row), **blank} for row in found]

    @routes.get("/of-event/{number}")
    def campaign_of_event(number: int, user: Caller) -> dict[str, Any]:
        return shown(store.campaign(requests.campaign_of_event(store, number)), user)

    @routes.get("")
    def campaigns(user: Caller, own: bool = False) -> list[dict[str, Any]]:
        found = store.campaigns()
        return [shown(one, user) for one in found if not own or user.name in {"", one.user}]

    @routes.get("/{name}")
    def campaign(name: str, user: Caller) -> dict[str, Any]:
        return shown(store.campaign(name), user)

    @routes.get("/{name}/items")
    def items(name: str, user: Caller, first: int = 0, count: int = 1000) -> list[dict[str, Any]]:
        found = store.campaign(name)
        if found.kind == MAP:  # its record is at its user's home
            return calls_of(found, first, min(count, MOST_ITEMS)) if user.may_change(found) else []
        return rows(found, user, store.items(found.id, first, min(count, MOST_ITEMS)), "error")

    @routes.get("/{name}/pilots")
    def pilots(name: str, user: Caller) -> list[dict[str, Any]]:
        found = store.campaign(name)
        return rows(found, user, store.pilots(found.id), "message")

    @routes.get("/{name}/events")
    def events(name: str, user: Caller) -> list[dict[str, Any]]:
        found = store.campaign(name)
        return rows(found, user, store.events(found.id), "group", "message")

    return routes


def for_owners(store: Store) -> APIRouter:
    """Routes for the owner of a campaign, and for administrators."""

    def check_owner(request: Request, user: Caller) -> None:
        name = request.path_params.get("name")
        campaign = None if name is None else store.campaign(name)
        if campaign is not None and not user.may_change(campaign):
            what = f"campaign {campaign.id[:8]} is {campaign.user}'s"
            raise NotAllowedError(what, advice=f"only {campaign.user} or an administrator of the grid may do this")

    return APIRouter(prefix="/campaigns", dependencies=[Depends(check_owner)])


def routes_to_look_into(engine: Engine) -> APIRouter:
    """What an item has printed, and what becomes of it."""
    routes = for_owners(engine.store)

    @routes.get("/{name}/items/{number}/log")
    def log_of_item(name: str, number: int) -> dict[str, Any]:
        return requests.log_of_item(engine, only_campaign(engine.store.campaign(name)), number)

    @routes.get("/{name}/items/{number}/explanation")
    def explanation(name: str, number: int) -> dict[str, str]:
        return {"text": requests.explanation(engine.store, only_campaign(engine.store.campaign(name)), number)}

    @routes.get("/{name}/description")
    def description(name: str) -> dict[str, Any]:
        return requests.description(engine, only_campaign(engine.store.campaign(name)))

    return routes


def routes_to_change(engine: Engine) -> APIRouter:
    """What clients change."""
    routes = for_owners(engine.store)

    @routes.post("", status_code=201)
    def add(body: dict[str, Any], user: Caller) -> dict[str, Any]:
        campaign = campaign_from(body)
        return added(engine, dataclasses.replace(campaign, user=user.name or campaign.user)).to_json()

    @routes.post("/{name}/items")
    def add_items(name: str, body: dict[str, int]) -> dict[str, Any]:
        campaign = only_campaign(engine.store.campaign(name))
        requests.add_items(engine, campaign, body["first"], body["count"])
        return engine.store.campaign(campaign.id).to_json()

    @routes.post("/{name}/resubmit")
    def resubmit(name: str, body: dict[str, list[int] | None]) -> dict[str, int]:
        campaign = only_campaign(engine.store.campaign(name))
        return {"count": requests.resubmit(engine, campaign, body.get("only"))}

    @routes.post("/{name}/cancel-items")
    def cancel_items(name: str, body: dict[str, list[int]]) -> dict[str, int]:
        return {"count": requests.cancel_items(engine, engine.store.campaign(name), body["only"])}

    @routes.post("/{name}/fix")
    def fix(name: str, body: dict[str, list[int] | None]) -> dict[str, int]:
        campaign = only_campaign(engine.store.campaign(name))
        return {"count": requests.fix(engine, campaign, body.get("events"))}

    @routes.delete("/{name}")
    def purge(name: str) -> dict[str, Any]:
        campaign = engine.store.campaign(name)
        if campaign.kind == MAP:
            engine.maps.purge(campaign)
        else:
            requests.purge(engine, campaign)
        return campaign.to_json()

    @routes.post("/{name}/{verb}")
    def change(name: str, verb: str) -> dict[str, Any]:
        change_state(engine, engine.store.campaign(name), verb)
        return engine.store.campaign(name).to_json()

    return routes


def check_admin(request: Request, user: Caller) -> None:
    """Let administrators alone change what concerns all users.

    Raises:
        NotAllowedError: the caller is none.
    """
    if request.method != "GET" and not user.is_admin:
        raise NotAllowedError("only an administrator of the grid may do this", advice="`srf grid user` lists them")


def routes_of_users(engine: Engine) -> APIRouter:
    """The users of the grid, and the caps of clusters: all users read them, administrators change them."""
    routes, users = APIRouter(dependencies=[Depends(check_admin)]), engine.store.users

    @routes.get("/users")
    def all_users() -> list[dict[str, Any]]:
        return [dataclasses.asdict(user) for user in users.all()]

    @routes.patch("/users/{user_name}")
    def change_user(user_name: str, body: dict[str, Any]) -> dict[str, Any]:
        return dataclasses.asdict(users.set(user_name, body.get("weight"), body.get("is_admin")))

    @routes.post("/users/{user_name}/token", status_code=201)
    def make_token(user_name: str) -> dict[str, str]:
        return {"token": made_token(engine, user_name)}

    @routes.delete("/users/{user_name}/token")
    def revoke_token(user_name: str) -> dict[str, Any]:
        users.revoke(user_name)
        return {}

    @routes.get("/caps")
    def caps() -> dict[str, int]:
        return engine.store.caps()

    @routes.put("/caps/{cluster}")
    def set_cap(cluster: str, body: dict[str, int | None]) -> dict[str, int]:
        engine.store.set_cap(cluster, body["cap"])
        engine.wake()
        return engine.store.caps()

    return routes


def routes_of_clusters(engine: Engine) -> APIRouter:
    """Clusters as campaigns use them. A drain concerns all users."""
    routes = APIRouter(prefix="/clusters", dependencies=[Depends(check_admin)])

    @routes.get("")
    def in_use() -> list[dict[str, Any]]:
        return [dataclasses.asdict(cluster) for cluster in clusters.in_use(engine)]

    @routes.post("/{name}/drain")
    def drain(name: str, body: dict[str, str], user: Caller) -> dict[str, Any]:
        return dataclasses.asdict(clusters.drain(engine, name, user.name or body["user"], body.get("reason", "")))

    @routes.post("/{name}/resume")
    def resume(name: str) -> dict[str, bool]:
        return {"was_drained": clusters.resume(engine, name)}

    return routes


def made_token(engine: Engine, user_name: str) -> str:
    """Make a token for a user. The first one is that of this home, which keeps it.

    Raises:
        GridTokenError: it is the first one, and this home has a token of another grid.
    """
    is_first, files = engine.user is None, EngineFiles()
    if is_first and files.user_token():
        raise GridTokenError("this home has a token of another grid", advice=f"remove {files.user_token_file}")
    token = engine.store.users.issue(user_name)
    if is_first:
        write_whole(files.user_token_file, token.encode())
        engine.identify()
    return token


def change_state(engine: Engine, campaign: Campaign, verb: str) -> None:
    """Pause, resume or cancel a campaign, or close an open one.

    Raises:
        GridError: there is no such verb, or the campaign has ended.
    """
    if verb not in {"pause", "resume", "cancel", "close"}:
        raise HTTPException(404, f"a campaign can't {verb}")
    if verb == "cancel" and campaign.state is CampaignState.CANCELLED:
        return
    if campaign.state.final:
        raise GridError(
            f"campaign {campaign.id[:8]} has ended: {campaign.state.value}", advice="start it anew with its values"
        )
    if campaign.kind == MAP and verb != "cancel":
        what = f"{campaign.id[:8]} is a map, which can't {verb}: its calls are runs that have begun, or soon will"
        raise GridError(what, advice=f"`srf grid cancel {campaign.id[:8]}` ends it")
    if campaign.kind == MAP:
        engine.maps.cancel(campaign.id)
    elif verb == "cancel":
        engine.cancel(campaign.id)
    elif verb == "close":
        engine.store.close_campaign(campaign.id)
    elif verb == "pause":
        engine.pause(campaign.id)
    else:
        engine.resume(campaign)
    engine.wake()


def added(engine: Engine, campaign: Campaign) -> Campaign:
    """Begin a campaign. One that the engine has already is given as it is: the answer to the first request was lost.

    Raises:
        NotAllowedError: its user has an engine elsewhere; pilots run under their owner's own log-in only.
    """
    engine.check_owned(campaign)
    try:
        known = engine.store.campaign(campaign.id)
    except UnknownCampaignError:
        engine.add(campaign)
        known = engine.store.campaign(campaign.id)
    engine.check_owned(known)
    return known


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
        name = f"{socket.gethostname()}:{home()}"
        store = Store(default_url())
        store.migrate()
        gc.freeze()  # what is imported stays: to look through it again and again took a third of the engine's time
        cap = functools.cache(cap_of_kind)
        engine = Engine(
            store,
            launch_pilot,
            functools.cache(workers_of),
            functools.cache(cores_of),
            cap,
            identify=lambda: store.users.renew(files.user_token(), name),
        )
        try:
            engine.identify()
            return _serve(engine, files)
        except GridError as error:
            log.error("%s", error)
            return 1
        finally:
            store.users.leave(name)


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
