"""Two users of one PostgreSQL, each with a home and an engine of their own, on one machine."""

import itertools
import json
import os
from pathlib import Path

import pytest

import postgres
from slurm_ray_flow.blocks.grid_engine import end_engine
from support import wait_for

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(600),
    pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed"),
]
ITEMS = 300
FUNCTION = """
import time
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(ray="never", cpus_per_node=2)
def slow(number: int) -> int:
    time.sleep(0.1)
    print("printed", number)
    return number
"""


class OfUser:
    """The commands of one user."""

    def __init__(self, srf, folder, variables):
        self._srf, self._folder, self.variables = srf, folder, variables

    def __call__(self, *words, ok=True, **variables):
        done = self._srf("grid", *words, cwd=str(self._folder), timeout=300, **{**self.variables, **variables})
        assert (done.returncode == 0) is ok, done.stderr
        return done.stdout if ok else done.stderr

    def json(self, *words):
        return json.loads(self(*words, "--json"))

    def submit(self, count):
        return self.json("submit", "work.py:slow", "--count", str(count))["id"]


@pytest.fixture(scope="module")
def users(server, srf, tmp_path_factory):
    """Alice, who administers the grid, and Bob, who has no token yet, and uses Alice's Prefect server."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "work.py").write_text(FUNCTION)
    with postgres.postgres() as url:
        alices = {"SRF_GRID_DATABASE_URL": url, "SRF_HOME": os.environ["SRF_HOME"]}
        secret = Path(alices["SRF_HOME"], "server", "secret").read_text()
        api = {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": f"srf:{secret}"}
        bobs = {**alices, **api, "SRF_HOME": str(tmp_path_factory.mktemp("bob"))}
        yield OfUser(srf, folder, alices), OfUser(srf, folder, bobs)
        for one in (alices, bobs):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SRF_HOME", one["SRF_HOME"])
                end_engine()
        for name in ("user_token", "database"):  # other tests have this home, too
            Path(alices["SRF_HOME"], "grid", name).unlink(missing_ok=True)


def test_two_users_share_a_grid(users):
    alice, bob = users
    first = alice("token", "alice").strip()
    assert Path(alice.variables["SRF_HOME"], "grid", "user_token").read_text() == first
    assert "no token" in bob("stat", ok=False)
    token = alice("token", "bob").strip()
    assert "wrong" in bob("stat", ok=False, SRF_GRID_TOKEN=f"{token}x")
    bob.variables["SRF_GRID_TOKEN"] = token
    assert "administrator" in bob("user", "bob", "--weight", "9", ok=False)
    alice("user", "bob", "--weight", "2")
    assert [(one["name"], one["weight"], one["is_admin"]) for one in bob.json("user")] == [
        ("alice", 1.0, True),
        ("bob", 2.0, False),
    ]

    long = alice.submit(ITEMS)
    wait_for(lambda: alice.json("stat", long)["succeeded"], 240)
    short = bob.submit(20)
    theirs = bob.json("stat", long)
    assert (theirs["user"], theirs["total"], theirs["options"]) == ("alice", ITEMS, {})
    for words in (("cancel", long), ("logs", long, "0"), ("purge", long)):
        assert "alice's" in bob(*words, ok=False)
    for user, campaign, count in ((bob, short, 20), (alice, long, ITEMS)):
        user("watch", campaign)
        lines = [json.loads(line) for line in user("results", campaign, "--json").splitlines()]
        assert [line["value"] for line in lines] == list(range(count))
        assert sum(pilot["succeeded"] for pilot in user.json("stat", campaign)["pilots"]) == count, "each once"
    pilots = [pilot for campaign in (long, short) for pilot in bob.json("stat", campaign)["pilots"]]
    pilots.sort(key=lambda pilot: pilot["created"])
    assert len({pilot["campaign"] for pilot in pilots}) == 2
    for earlier, later in itertools.pairwise(pilots):
        assert earlier["ended_at"] <= later["created"], "this machine has one pilot at a time, whoever's it is"

    for one in users:
        files = [path for path in Path(one.variables["SRF_HOME"]).rglob("*") if path.is_file()]
        assert not [path for path in files if path.name != "user_token" and token.encode() in path.read_bytes()]
    alice("token", "bob", "--revoke")
    assert "revoked" in bob("stat", ok=False)
