"""The flow runs of campaigns, with a real store and a Prefect of a dictionary."""

import io
import threading
import time
import urllib.error
import uuid

import pytest

from grid_lab import campaign
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.grid.campaign_page import PilotSize
from slurm_ray_flow.core.grid.model import CampaignState
from slurm_ray_flow.grid.campaign_flow import CampaignFlows, flow_run_of
from slurm_ray_flow.grid.store import Store


class FakePrefect:
    """A fake of Prefect's API: flow runs and artifacts in dictionaries. `away` and `refused` make it fail."""

    def __init__(self):
        self.runs, self.artifacts, self.sent = {}, {}, 0
        self.away, self.refused = False, ""

    def post(self, path, body):
        self.sent += 1
        if self.away:
            raise ServerError("nothing listens there")
        if self.refused and self.refused in f"{path} {body}":
            raise ServerError("no") from urllib.error.HTTPError(path, 409, "no", None, io.BytesIO())
        match path.strip("/").split("/"):
            case ["flows"]:
                return {"id": "flow"}
            case ["flow_runs"]:
                return self.made(body)
            case ["flow_runs", "filter"]:
                wanted = body["flow_runs"]["id"]["any_"]
                return [self.runs[one] for one in wanted if one in self.runs]
            case ["flow_runs", name, "set_state"]:
                self.set_state(name, **body["state"])
            case ["artifacts", "filter"]:
                query = body["artifacts"]
                owner, key = query["flow_run_id"]["any_"][0], query["key"]["any_"][0]
                same = [one for one in self.artifacts.values() if (one["flow_run_id"], one["key"]) == (owner, key)]
                return same[:1]
            case ["artifacts"]:
                made = {**body, "id": uuid.uuid4().hex}
                self.artifacts[made["id"]] = made
                return made
        return None

    def patch(self, path, body):
        self.sent += 1
        self.artifacts[path.rpartition("/")[2]].update(body)

    def made(self, body):
        for run in self.runs.values():
            if run["idempotency_key"] == body["idempotency_key"]:
                return run
        number = str(uuid.uuid4())
        self.runs[number] = {**body, "id": number}
        self.set_state(number, **body["state"])
        return self.runs[number]

    def set_state(self, name, **state):
        self.runs[name].update(state_type=state["type"], state=state)


class FakeEngine:
    """A fake of the engine that notes what it is asked for."""

    def __init__(self, store):
        self.store, self.stopped, self.cancelled = store, threading.Event(), []

    def cancel(self, campaign_id, reason):
        self.cancelled.append(campaign_id)
        self.store.cancel(campaign_id, time.time(), reason)

    def owns(self, campaign):
        return campaign.user == "alice"

    def wake(self):
        pass


@pytest.fixture
def store(tmp_path):
    made = Store(f"sqlite:///{tmp_path / 'grid.db'}")
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def prefect():
    return FakePrefect()


@pytest.fixture
def engine(store):
    return FakeEngine(store)


@pytest.fixture
def flows(engine, prefect):
    return CampaignFlows(engine, lambda *_: PilotSize(4), lambda: prefect)


def begun(store, **fields):
    made = campaign(10, created=time.time(), **fields)
    store.add_campaign(made)
    return made.id


def end(store, campaign_id):
    store.set_campaign_state(campaign_id, CampaignState.SUCCEEDED, ended_at=time.time())


def types(prefect):
    return {run["parameters"]["campaign"]: run["state_type"] for run in prefect.runs.values()}


def test_a_server_that_is_away_is_asked_again_and_all_is_there_then(flows, store, prefect):
    first = begun(store)
    prefect.away = True
    for _ in range(2):
        with pytest.raises(ServerError):
            flows.step()
    second = begun(store)
    end(store, first)
    prefect.away = False
    flows.step()
    assert types(prefect) == {first: "COMPLETED", second: "RUNNING"}
    assert store.campaign(first).flow_run_id in prefect.runs
    assert store.campaign(second).state is CampaignState.ACTIVE


def test_a_campaign_that_prefect_refuses_does_not_keep_others_from_being_shown(flows, store, prefect):
    refused, other = begun(store, name="refused"), begun(store)
    prefect.refused = refused
    flows.step()
    assert types(prefect) == {other: "RUNNING"}
    prefect.refused = ""
    flows.step()
    assert types(prefect) == {other: "RUNNING", refused: "RUNNING"}


def test_all_who_make_the_flow_run_of_a_campaign_get_the_same_one(flows, store, prefect):
    made = begun(store)
    by_the_launch = flow_run_of(prefect, store.campaign(made))
    flows.step()
    assert store.campaign(made).flow_run_id == by_the_launch and len(prefect.runs) == 1


def test_a_flow_run_that_was_deleted_is_made_anew(flows, store, prefect):
    made = begun(store)
    flows.step()
    prefect.runs.clear()
    flows.step()
    assert types(prefect) == {made: "RUNNING"} and store.campaign(made).flow_run_id in prefect.runs


def test_the_next_engine_goes_on_with_states_and_artifacts(flows, store, prefect):
    made = begun(store)
    flows.step()
    later = CampaignFlows(FakeEngine(store), lambda *_: PilotSize(4), lambda: prefect)
    end(store, made)
    later.step()
    assert types(prefect) == {made: "COMPLETED"}
    assert sorted(one["type"] for one in prefect.artifacts.values()) == ["markdown", "progress"]


def test_campaigns_of_other_users_are_left_to_their_engines(flows, store, prefect):
    made, _ = begun(store), begun(store, user="bob")
    flows.step()
    flows.step()
    assert types(prefect) == {made: "RUNNING"}


def test_what_has_ended_and_is_shown_costs_the_next_engine_one_question(flows, store, prefect):
    for _ in range(5):
        end(store, begun(store))
    flows.step()
    later = CampaignFlows(FakeEngine(store), lambda *_: PilotSize(4), lambda: prefect)
    before = prefect.sent
    later.step()
    assert prefect.sent == before + 1
    assert set(types(prefect).values()) == {"COMPLETED"} and len(prefect.runs) == 5


def test_one_that_goes_on_and_ends_between_two_looks_gets_its_state(flows, store, prefect):
    made = begun(store)
    flows.step()
    store.cancel(made, time.time())
    store.finish_cancel(made, time.time())
    flows.step()
    assert types(prefect) == {made: "CANCELLED"}
    assert store.resubmit(made, None, 0) == 10
    end(store, made)
    flows.step()
    assert types(prefect) == {made: "COMPLETED"}


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED"])
def test_a_state_of_a_person_is_obeyed_once(flows, engine, store, prefect, state):
    made, other = begun(store), begun(store)
    flows.step()
    prefect.set_state(store.campaign(made).flow_run_id, type=state, message="by hand")
    flows.step()
    assert store.campaign(made).state is CampaignState.CANCELLED
    store.finish_cancel(made, time.time())
    flows.step()
    store.resubmit(made, None, 0)
    flows.step()
    assert types(prefect) == {made: "RUNNING", other: "RUNNING"}
    assert engine.cancelled == [made]


def test_a_campaign_that_is_purged_is_forgotten(flows, store, prefect):
    made = begun(store)
    flows.step()
    store.delete_campaign(made)
    before = prefect.sent
    flows.step()
    assert prefect.sent == before
