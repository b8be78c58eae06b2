"""Artifacts are made by a thread of their own: in place, with a pace, and never to the cost of a launch."""

import threading

import pytest

from slurm_ray_flow.blocks import artifacts
from slurm_ray_flow.blocks.artifacts import Artifact, Artifacts
from slurm_ray_flow.core.errors import ServerError
from support import wait_for


class FakeApi:
    """A fake of Prefect's API that notes what it is asked for."""

    def __init__(self, failures=0):
        self.asked, self.failures, self.ready = [], failures, threading.Event()
        self.ready.set()

    def _note(self, *request):
        self.ready.wait(60)
        if self.failures:
            self.failures -= 1
            raise ServerError("busy")
        self.asked.append(request)

    def post(self, path, body):
        self._note("post", path, body["key"], body["data"])
        return {"id": f"id-of-{body['key']}"}

    def patch(self, path, body):
        self._note("patch", path, body.get("data", body.get("tags")))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(artifacts, "PACE_SECONDS", 0.05)


def one(data, key="waiting"):
    return Artifact(key, "markdown", data, "said")


def test_nothing_is_sent_before_the_launch_has_made_its_own_requests(monkeypatch):
    monkeypatch.setattr(artifacts, "BEGIN_SECONDS", 60.0)
    api = FakeApi()
    shown = Artifacts(api, "flow")
    shown.show(one("a"))
    shown.tag({"b", "a"})
    assert api.asked == []
    shown.open()
    wait_for(lambda: len(api.asked) == 2)
    assert api.asked == [
        ("patch", "/flow_runs/flow", ["a", "b"]),
        ("post", "/artifacts/", "waiting", "a"),
    ]
    shown.close()


def test_a_change_is_made_in_place_and_what_came_between_is_left_out(quick):
    api = FakeApi()
    shown = Artifacts(api, "flow")
    shown.open()
    shown.show(one("first"))
    wait_for(lambda: api.asked)
    api.ready.clear()
    for number in range(100):
        shown.show(one(f"state {number}"))
    api.ready.set()
    wait_for(lambda: api.asked[-1][-1] == "state 99")
    assert {request[0] for request in api.asked[1:]} == {"patch"}
    assert api.asked[-1][1] == "/artifacts/id-of-waiting"
    assert len(api.asked) < 10
    shown.close()


def test_the_same_is_not_sent_twice(quick):
    api = FakeApi()
    shown = Artifacts(api, "flow")
    shown.open()
    shown.show(one("a"))
    wait_for(lambda: api.asked)
    shown.show(one("a"))
    shown.show(one("b", key="other"))
    wait_for(lambda: len(api.asked) == 2)
    shown.close()
    shown.wait(60)
    assert [request[2] for request in api.asked] == ["waiting", "other"]


def test_the_last_state_is_sent_at_the_end_without_its_pace():
    api = FakeApi()
    shown = Artifacts(api, "flow")
    shown.open()
    shown.show(one("begun"))
    wait_for(lambda: api.asked)
    shown.show(one("ended"))
    shown.close()
    shown.wait(60)
    assert [request[-1] for request in api.asked] == ["begun", "ended"]


def test_a_server_that_fails_is_asked_again_and_given_up_in_the_end(quick):
    api = FakeApi(failures=2)
    shown = Artifacts(api, "flow")
    shown.open()
    shown.show(one("a"))
    wait_for(lambda: api.asked)
    shown.close()
    dead = Artifacts(FakeApi(failures=1000), "flow")
    dead.open()
    dead.show(one("a"))
    dead.wait(60)
    dead.show(one("b"))
    dead.close()


def test_without_a_server_nothing_happens():
    shown = Artifacts(None, "")
    shown.show(one("a"))
    shown.close()
    shown.wait(1)
