"""Users of one grid in PostgreSQL: who gets in, what each sees and changes, and whose pilots an engine starts."""

import contextlib
import hashlib
import socket
import threading

import httpx
import pytest
import uvicorn
from sqlalchemy import text

import grid_lab
import postgres
from slurm_ray_flow.core.errors import GridError, GridTokenError, NotAllowedError, OptionError
from slurm_ray_flow.core.grid.model import CampaignState, ClusterShare, ItemOutcome, ItemState
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.client import _error_of
from slurm_ray_flow.grid.engine import Engine
from slurm_ray_flow.grid.service import api_of
from slurm_ray_flow.grid.store import Store

pytestmark = pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed")
HOME_TOKEN, PRIVATE = "of this home", "42-is-an-argument"
HERE, ELSEWHERE = "lab:/home/alice", "laptop:/home/alice"


@pytest.fixture(scope="module")
def postgresql():
    with grid_lab.postgresql() as url:
        yield url


@pytest.fixture
def store(postgresql):
    with grid_lab.schema(postgresql) as url, contextlib.closing(Store(url)) as made:
        made.migrate()
        yield made


@pytest.fixture
def tokens(store):
    """Alice, who is the administrator, and Bob."""
    return {name: store.users.issue(name) for name in ("alice", "bob")}


def begun(store, user, **fields):
    """A campaign with a failed item and an event, in whose every text there is something private."""
    share = ClusterShare("desi", prepared=PRIVATE, options={"x": PRIVATE}, reason=PRIVATE)
    made = grid_lab.campaign(3, user=user, clusters=(share,), options={"same": PRIVATE}, reason=PRIVATE, **fields)
    store.add_campaign(made)
    pilot = store.add_pilot(made.id, "desi", 1, 0.0)
    store.update_pilot(pilot, message=PRIVATE)
    bundle = store.lease(pilot, made.id, 1, 0.0)
    failed = ItemOutcome(0, bundle.id, ItemState.FAILED, 1.0, 0, 9, f"ValueError: {PRIVATE}")
    store.record(pilot, made.id, 1, [failed], [], 9, 0.0)
    store.add_event(made.id, "desi", "error", "error", f"ValueError {PRIVATE}", PRIVATE, 1, 0.0)
    return made


@pytest.fixture
def campaigns(store, tokens, tmp_path, monkeypatch):
    """One of each, whose files are at the homes of their users: only Alice's at this one."""
    monkeypatch.setenv("SRF_HOME", str(tmp_path))
    made = {name: begun(store, name) for name in tokens}
    CampaignFolder(made["alice"].id).write((), {})
    return made


def an_engine(store, **options):
    """An engine that starts no pilots and tells Prefect nothing."""
    return Engine(store, lambda *_: None, lambda *_: 1, send=lambda _: None, **options)


@pytest.fixture
def engine(store, tokens, campaigns):
    made = an_engine(store, identify=lambda: store.users.renew(tokens["alice"], HERE))
    made.identify()
    yield made
    made.stop()


@contextlib.contextmanager
def served(api):
    """A real server on loopback; gives what asks it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = "http://{}:{}".format(*listener.getsockname())
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:

        def ask(method, path, token="", **content):
            return client.request(
                method, path, headers={"authorization": f"Bearer {token}"} if token else {}, **content
            )

        ask.routes = [(method.upper(), path) for path, methods in api.openapi()["paths"].items() for method in methods]
        assert len(ask.routes) > 15
        yield ask
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def asked(engine):
    """Asks the API of Alice's engine."""
    with served(api_of(engine, HOME_TOKEN)) as ask:
        yield ask


def filled(path, campaign, store):
    [event] = store.events(campaign.id)
    number = str(event.id) if "of-event" in path else "0"
    names = {"name": campaign.id[:9], "number": number, "verb": "pause", "user_name": "bob", "cluster": "desi"}
    return path.format(**names)


BODIES = {
    "/campaigns/{name}/items": {"first": 3, "count": 1},
    "/users/{user_name}": {"weight": 2.0},
    "/caps/{cluster}": {"cap": 3},
}


def test_no_route_lets_anybody_in_without_a_token(asked, store, campaigns, tokens):
    revoked = store.users.issue("carol")
    store.users.revoke("carol")
    for method, path in asked.routes:
        for token in ("", "wrong", revoked, hashlib.sha256(tokens["bob"].encode()).hexdigest()):
            answer = asked(method, filled(path, campaigns["alice"], store), token, json=BODIES.get(path, {}))
            assert answer.status_code == 401, (method, path)
            assert isinstance(_error_of(answer), GridTokenError)
            assert PRIVATE not in answer.text


def test_all_read_what_exists_and_only_owners_and_administrators_change_it(asked, store, campaigns, tokens):
    before = store.campaign(campaigns["alice"].id)
    for method, path in asked.routes:
        if path in {"/campaigns", "/users", "/caps"}:
            continue
        answer = asked(method, filled(path, campaigns["alice"], store), tokens["bob"], json=BODIES.get(path, {}))
        if method == "GET" and not path.endswith(("/log", "/explanation", "/description")):
            assert answer.status_code == 200, (method, path)
        else:
            assert answer.status_code == 403, (method, path)
            error = _error_of(answer)
            assert isinstance(error, NotAllowedError)
            assert path.startswith(("/users", "/caps", "/clusters")) or "alice's" in error.what
    assert store.campaign(before.id) == before
    assert [user.name for user in store.users.all()] == ["alice", "bob"]
    assert asked("POST", f"/campaigns/{campaigns['bob'].id}/pause", tokens["bob"]).status_code == 200
    for verb in ("pause", "resume", "cancel"):
        answer = asked("POST", f"/campaigns/{campaigns['bob'].id}/{verb}", tokens["alice"])
        assert answer.status_code == 200
    assert store.campaign(campaigns["bob"].id).state is CampaignState.CANCELLED


def test_others_see_states_and_counts_and_nothing_of_what_items_were_given_or_said(asked, store, campaigns, tokens):
    reads = [path for method, path in asked.routes if method == "GET"]
    for path in reads:
        seen = asked("GET", filled(path, campaigns["alice"], store), tokens["bob"])
        mine = asked("GET", filled(path, campaigns["bob"], store), tokens["bob"])
        if "{name}" in path:
            assert PRIVATE not in seen.text, path
            assert PRIVATE in mine.text or path.endswith(("log", "description")), path
    [alices] = [one for one in asked("GET", "/campaigns", tokens["bob"]).json() if one["user"] == "alice"]
    assert (alices["state"], alices["total"], alices["failed"]) == ("active", 3, 1)
    assert (alices["clusters"][0]["cluster"], alices["clusters"][0]["prepared"]) == ("desi", "")
    assert PRIVATE not in str(alices)
    assert [one["user"] for one in asked("GET", "/campaigns?own=true", tokens["bob"]).json()] == ["bob"]


def test_an_engine_works_for_its_own_user_alone(asked, engine, store, campaigns, tokens):
    new = grid_lab.campaign(1, user="alice").to_json()
    refused = asked("POST", "/campaigns", tokens["bob"], json=new)
    assert refused.status_code == 403
    assert "bob" in _error_of(refused).advice
    taken = asked("POST", "/campaigns", tokens["alice"], json=campaigns["bob"].to_json())
    assert taken.status_code == 403, "the id is that of another user's campaign"
    for verb, body in (("items", {"first": 3, "count": 1}), ("resubmit", {})):
        answer = asked("POST", f"/campaigns/{campaigns['bob'].id}/{verb}", tokens["alice"], json=body)
        assert answer.status_code == 403, "its files are at another home"
    started = []
    engine._launch = lambda campaign, *_: started.append(campaign.user)
    store.update_pilot(store.pilots(campaigns["alice"].id)[0].id, state="ended")
    engine._find_pilots()
    assert engine.pilots == {}, "a pilot of another user is left to that user's engine"
    assert [pilot.state for pilot in store.pilots(campaigns["bob"].id)] == ["requested"]
    engine._control()
    for pilot in list(engine.pilots.values()):
        pilot.thread.join(60)
    assert started == ["alice"]


def test_a_user_who_is_let_in_no_longer_begins_nothing(asked, engine, store, tokens):
    store.users.set("bob", None, True)
    store.users.revoke("alice")
    assert engine._is_known() is False
    answer = asked("GET", "/campaigns", HOME_TOKEN)
    assert isinstance(_error_of(answer), GridTokenError), "the token of her home lets her in no longer, either"
    assert asked("GET", "/campaigns", tokens["bob"]).status_code == 200


def test_tokens_are_kept_as_digests_and_the_first_user_has_what_was_there(store):
    before = grid_lab.campaign(1, user="lab")
    store.add_campaign(before)
    assert store.users.renew("", HERE) is None, "a database without users asks for no token"
    token = store.users.issue("alice")
    assert store.campaign(before.id).user == "alice"
    assert len(token) >= 43
    with store._database.reading() as connection:
        assert token not in str(connection.execute(text("SELECT * FROM srf_user")).all())
    user = store.users.of_token(token)
    assert (user.name, user.is_admin, token in repr(user)) == ("alice", True, False)
    again = store.users.issue("alice")
    with pytest.raises(GridTokenError):
        store.users.of_token(token)
    assert store.users.of_token(again).name == "alice"
    with pytest.raises(OptionError, match="name"):
        store.users.issue("../alice")


def test_a_user_has_one_engine(store, tokens):
    assert store.users.renew(tokens["alice"], HERE).name == "alice"
    with pytest.raises(NotAllowedError, match="elsewhere") as caught:
        store.users.renew(tokens["alice"], ELSEWHERE)
    assert caught.value.where == HERE
    assert store.users.renew(tokens["bob"], ELSEWHERE).name == "bob"
    store.users.leave(HERE)
    assert store.users.renew(tokens["alice"], ELSEWHERE).name == "alice"
    with pytest.raises(GridTokenError, match="no token"):
        store.users.renew("", HERE)


def test_a_grid_keeps_an_administrator_and_refuses_what_can_not_be_meant(store, tokens):
    for change in (lambda: store.users.revoke("alice"), lambda: store.users.set("alice", None, False)):
        with pytest.raises(GridError, match="last administrator"):
            change()
    with pytest.raises(GridError, match="'nobody'"):
        store.users.set("nobody", 2.0, None)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="weight"):
            store.users.set("bob", weight, None)
    assert store.users.set("bob", 2.5, None).weight == 2.5
    with pytest.raises(OptionError, match="cap"):
        store.set_cap("desi", 0)
    store.set_cap("desi", 4)
    store.set_cap("desi", 5)
    assert store.caps() == {"desi": 5}
    store.set_cap("desi", None)
    assert store.caps() == {}


def test_a_grid_in_a_file_has_one_user_and_no_tokens(tmp_path):
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/grid.db")) as store:
        store.migrate()
        assert (store.users.all(), store.users.renew("", HERE)) == ([], None)
        with pytest.raises(GridError, match="needs no tokens"):
            store.users.issue("alice")
        with served(api_of(an_engine(store), HOME_TOKEN)) as ask:
            assert ask("GET", "/campaigns", HOME_TOKEN).json() == []
            assert ask("GET", "/campaigns").status_code == 401
            answer = ask("GET", "/campaigns", "of another grid")
            assert "no users" in _error_of(answer).what
