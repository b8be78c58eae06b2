"""The client of the grid's service."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from slurm_ray_flow.blocks.grid_engine import (
    API_HEADER,
    API_VERSION,
    EngineFiles,
    engine_of_this_version,
    ensure_engine,
)
from slurm_ray_flow.core import errors
from slurm_ray_flow.core.artifacts import short_name
from slurm_ray_flow.core.errors import GridError, SlurmRayFlowError, UnknownCampaignError
from slurm_ray_flow.core.grid.model import Campaign, User

ANSWER_SECONDS = 30.0
AWAY_SECONDS, AWAY_PAUSE = 300.0, 1.0
"""For so long a wait goes on while the engine or its database does not answer, and the pause between two questions."""


class GridClient:
    """Requests to the engine of this home, which is started if it does not run.

    Args:
        tell: gets a sentence about each step that takes longer.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _: None) -> None:
        self._tell = tell
        self._http: httpx.Client | None = None
        self._is_checked = False

    def add(self, campaign: Campaign) -> Campaign:
        """Begin a campaign, whose folder is written."""
        return Campaign.from_json(self._ask("POST", "/campaigns", json=campaign.to_json()))

    def show_map(self, map_id: str) -> None:
        """Have the engine list a map, whose record is written."""
        self._ask("POST", f"/maps/{map_id}")

    def campaign(self, campaign_id: str) -> Campaign:
        """A campaign or a map by its id, or by the start of it.

        Raises:
            UnknownCampaignError: there is none, or there are several.
        """
        return Campaign.from_json(self._ask("GET", f"/campaigns/{campaign_id}"))

    def campaign_to_follow(self, campaign_id: str, tell: Callable[[str], None]) -> Campaign:
        """A campaign for whoever waits for its end: an engine or a database that is away for minutes ends no wait.

        Args:
            campaign_id: its id.
            tell: gets a sentence where that is waited for.
        """
        deadline, told = time.monotonic() + AWAY_SECONDS, False
        while True:
            try:
                return self.campaign(campaign_id)
            except UnknownCampaignError:
                raise
            except GridError as error:
                if time.monotonic() >= deadline:
                    raise
                if not told:
                    tell(f"{error.what.splitlines()[0]}; waits for {AWAY_SECONDS:.0f} s at most")
                told = True
                time.sleep(AWAY_PAUSE)

    def campaigns(self, own: bool = False) -> list[Campaign]:
        """All campaigns and maps, or those of this client's user, the newest first."""
        found = self._ask("GET", "/campaigns", params={"own": own})
        return [Campaign.from_json(fields) for fields in found]

    def trouble(self) -> str:
        """What keeps the engine from its work at home, such as a full disk; "" for nothing."""
        return str(self._ask("GET", "/state")["trouble"])

    def items(self, campaign_id: str, first: int, count: int) -> list[dict[str, Any]]:
        """Items in order, from number `first` on."""
        rows: list[dict[str, Any]] = self._ask("GET", f"/campaigns/{campaign_id}/items?first={first}&count={count}")
        return rows

    def pilots(self, campaign_id: str) -> list[dict[str, Any]]:
        """The pilots of a campaign."""
        rows: list[dict[str, Any]] = self._ask("GET", f"/campaigns/{campaign_id}/pilots")
        return rows

    def events(self, campaign_id: str) -> list[dict[str, Any]]:
        """The events of a campaign."""
        rows: list[dict[str, Any]] = self._ask("GET", f"/campaigns/{campaign_id}/events")
        return rows

    def change(self, campaign_id: str, verb: str) -> Campaign:
        """Pause, resume or cancel a campaign, or close an open one.

        Raises:
            GridError: it has ended.
        """
        return Campaign.from_json(self._ask("POST", f"/campaigns/{campaign_id}/{verb}"))

    def add_items(self, campaign_id: str, first: int, count: int) -> Campaign:
        """Add items whose arguments are written.

        Args:
            first: the number of the first of them, which is how many items the campaign has.
            count: how many they are.

        Raises:
            GridError: the campaign has ended, or has another number of items.
        """
        return Campaign.from_json(
            self._ask("POST", f"/campaigns/{campaign_id}/items", json={"first": first, "count": count})
        )

    def resubmit(self, campaign_id: str, only: list[int] | None = None) -> int:
        """Have items without a value wait again; gives how many. See `Store.resubmit`."""
        return int(self._ask("POST", f"/campaigns/{campaign_id}/resubmit", json={"only": only})["count"])

    def cancel_items(self, campaign_id: str, only: list[int]) -> int:
        """End some items; gives how many had not ended. One that a pilot has begun runs to its end there.

        Raises:
            GridError: there is no such item, or the campaign has ended.
        """
        return int(self._ask("POST", f"/campaigns/{campaign_id}/cancel-items", json={"only": only})["count"])

    def log(self, campaign_id: str, number: int) -> dict[str, Any]:
        """What an item printed: `text`, `pilot` and `cluster`, and whether an attempt of it has `ended`."""
        found: dict[str, Any] = self._ask("GET", f"/campaigns/{campaign_id}/items/{number}/log")
        return found

    def description(self, campaign_id: str) -> dict[str, Any]:
        """What a campaign runs, and what its pilots ask for on each cluster."""
        found: dict[str, Any] = self._ask("GET", f"/campaigns/{campaign_id}/description")
        return found

    def explanation(self, campaign_id: str, number: int) -> str:
        """Why an item waits, or where it is, in a sentence."""
        return str(self._ask("GET", f"/campaigns/{campaign_id}/items/{number}/explanation")["text"])

    def campaign_of_event(self, event_id: int) -> Campaign:
        """The campaign that has an event.

        Raises:
            UnknownCampaignError: none has.
        """
        return Campaign.from_json(self._ask("GET", f"/campaigns/of-event/{event_id}"))

    def fix(self, campaign_id: str, events: list[int] | None = None) -> int:
        """Close events, all by default, and reopen their clusters to the campaign; gives how many were open.

        Raises:
            GridError: the campaign has no such event.
        """
        return int(self._ask("POST", f"/campaigns/{campaign_id}/fix", json={"events": events})["count"])

    def clusters(self) -> list[dict[str, Any]]:
        """What campaigns have of each cluster that they use or that is drained: see `ClusterUse`."""
        rows: list[dict[str, Any]] = self._ask("GET", "/clusters")
        return rows

    def drain(self, cluster: str, reason: str = "") -> None:
        """Give campaigns no more pilots on a cluster; those that run end after the items that they have in hand."""
        said = {"user": getpass.getuser(), "reason": reason}
        self._ask("POST", f"/clusters/{short_name(cluster)}/drain", json=said)

    def resume_cluster(self, cluster: str) -> bool:
        """Have campaigns use a cluster again; says whether it was drained."""
        return bool(self._ask("POST", f"/clusters/{short_name(cluster)}/resume")["was_drained"])

    def purge(self, campaign_id: str) -> None:
        """Remove a campaign that has ended, with all that it left at home.

        Raises:
            GridError: it goes on, or its pilots have not ended.
        """
        self._ask("DELETE", f"/campaigns/{campaign_id}")

    def users(self) -> list[User]:
        """Those who share the grid's database; none where one home has it to itself."""
        return [User(**fields) for fields in self._ask("GET", "/users")]

    def change_user(self, name: str, weight: float | None = None, is_admin: bool | None = None) -> User:
        """Change what is given of a user.

        Raises:
            GridError: there is no such user, or the last administrator would be none.
            OptionError: this can't be a weight.
        """
        return User(**self._ask("PATCH", f"/users/{quote(name)}", json={"weight": weight, "is_admin": is_admin}))

    def make_token(self, name: str) -> str:
        """Make a token for a user, in the place of an earlier one. Nothing can show it a second time.

        Raises:
            OptionError: this can't be a name.
        """
        return str(self._ask("POST", f"/users/{quote(name)}/token")["token"])

    def revoke_token(self, name: str) -> None:
        """Let a user in no longer.

        Raises:
            GridError: there is no such user, or nobody else is an administrator.
        """
        self._ask("DELETE", f"/users/{quote(name)}/token")

    def caps(self) -> dict[str, int]:
        """The caps of clusters that were set."""
        return dict(self._ask("GET", "/caps"))

    def set_cap(self, cluster: str, cap: int | None) -> dict[str, int]:
        """Set how many pilots all campaigns together may have on a cluster; None as its kind has it. Gives all caps.

        Raises:
            OptionError: this can't be a cap.
        """
        return dict(self._ask("PUT", f"/caps/{quote(cluster)}", json={"cap": cap}))

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        """The answer to a request; an engine that has just been killed is started anew, once."""
        try:
            answer = self._connection().request(method, path, **content)
        except httpx.HTTPError:
            answer = self._repeated(method, path, content)
        if (version := answer.headers.get(API_HEADER)) != API_VERSION:
            what = f"the grid's engine has version {version or 1} of its API, and this client has {API_VERSION}"
            raise GridError(what, advice="`srf down`, then `srf up` start the engine anew; pilots go on meanwhile")
        if answer.is_success:
            return answer.json()
        raise _error_of(answer)

    def _repeated(self, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        self._http = None
        try:
            return self._connection().request(method, path, **content)
        except httpx.HTTPError as error:
            what = f"the grid's engine does not answer: {type(error).__name__}: {error}"
            where, advice = str(EngineFiles().log), "look at its log; `srf down` and `srf up` start it anew"
            raise GridError(what, where=where, advice=advice) from error

    def _connection(self) -> httpx.Client:
        state = ensure_engine(self._tell) if self._is_checked else engine_of_this_version(self._tell)
        self._is_checked = True
        if self._http is None or str(self._http.base_url).rstrip("/") != state.url:
            files = EngineFiles()
            headers = {"Authorization": f"Bearer {files.user_token() or files.token()}"}
            self._http = httpx.Client(base_url=state.url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False)
        return self._http


def _error_of(answer: httpx.Response) -> SlurmRayFlowError:
    """The error that the engine raised."""
    try:
        fields = answer.json()
        kind = getattr(errors, fields["kind"])
        error: SlurmRayFlowError = kind(fields["what"], where=fields["where"], advice=fields["advice"])
        return error
    except (ValueError, KeyError, AttributeError, TypeError):
        what = f"the grid's engine answers {answer.status_code}: {answer.text[:500]}"
        return GridError(what, where=str(EngineFiles().log), advice="look at its log")
