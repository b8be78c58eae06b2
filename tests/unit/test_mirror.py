"""What the mirror of a lock decides, and what a waiting launch says."""

import time

import pytest

from slurm_ray_flow.cli.queue import _summary
from slurm_ray_flow.core.lock import (
    LockQueue,
    LockUser,
    limit_name,
    place_in_line,
    queue_rows,
    queued_text,
    slots_to_hold,
    taken_by_others,
    waiting_text,
)

OURS, THEIRS = LockUser("alice", server="here"), LockUser("bob", server="there")
FOREIGN = LockUser("carol", foreign=True)


@pytest.mark.parametrize(
    ("holders", "slots", "expected"),
    [
        ((), 1, 0),
        ((OURS,), 1, 0),
        ((THEIRS,), 1, 1),
        ((LockUser("dave"),), 1, 1),
        ((OURS, THEIRS), 4, 1),
        ((LockUser("bob", server="there", slots=3), THEIRS), 4, 4),
        ((FOREIGN,), 4, 4),
        ((LockUser("bob", server="there", idle=True),), 1, 0),
    ],
)
def test_others_are_those_who_did_not_come_through_this_limit(holders, slots, expected):
    assert taken_by_others(LockQueue(holders), "here", slots) == expected


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_mirror_never_takes_more_than_there_is_nor_pushes_out_our_own(slots):
    for others in range(slots + 1):
        for own in range(slots + 1):
            for held in range(slots - own + 1):
                hold = slots_to_hold(others, active=own + held, held=held, slots=slots)
                assert 0 <= hold <= others
                assert own + hold <= slots
                assert hold == others or own + hold == slots, "what others hold is shown as far as there is room"


def test_a_free_server_is_shown_as_free():
    assert slots_to_hold(0, active=1, held=1, slots=1) == 0


def test_who_waits_is_told_who_holds_it_since_when_and_how_many_come_first():
    now = time.mktime((2026, 11, 21, 15, 0, 0, 0, 0, -1))
    since = time.mktime((2026, 11, 21, 14, 2, 0, 0, 0, -1))
    queue = LockQueue((LockUser("alice", since),), (LockUser("bob"),))
    assert waiting_text("desi", queue, 1, now) == "waiting for desi: held by alice since 14:02, 2 ahead"
    assert queued_text("desi", {"ahead": 2, "holder": {"user": "alice", "since": since}}, now) == waiting_text(
        "desi", queue, 1, now
    )
    assert "2026-11-20" in waiting_text("desi", LockQueue((LockUser("alice", since - 86400),)), 0, now)


def test_a_server_that_does_not_answer_is_named_as_such():
    assert "desi" in waiting_text("desi", None, 3, 0.0)
    assert "3 ahead" in waiting_text("desi", None, 3, 0.0)


@pytest.mark.parametrize("said", [{}, {"holders": None}, {"holders": [{}], "waiting": [{"since": "x", "slots": -3}]}])
def test_what_a_server_says_may_lack_anything(said):
    queue = LockQueue.from_json(said)
    assert all(party.slots == 1 for party in queue.holders + queue.waiting)
    assert waiting_text("desi", queue, 0, 0.0)
    assert len(queue_rows(queue, 0.0)) == len(queue.holders) + len(queue.waiting)


def test_the_line_is_the_order_of_arrival():
    assert [place_in_line(["a", "b"], one) for one in "abc"] == [0, 1, None]


def test_prefect_takes_the_name():
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    for label in ("desi", "Désk 1", "a/b%c&d<e>"):
        GlobalConcurrencyLimitCreate(name=limit_name(label), limit=1)


def test_what_others_wrote_steers_no_terminal():
    said = LockUser.from_json({"user": "bob\x1b[2J\n", "name": "n" * 10_000})
    assert said.user.isprintable() and said.user.startswith("bob")
    assert len(said.name) < 200


@pytest.mark.parametrize(("free", "unseen"), [(0, True), (1, False)])
def test_of_a_server_that_is_taken_the_queue_says_whom_it_does_not_see(free, unseen):
    line = _summary("desi", LockQueue(free=free), 0)
    assert "nobody waits" in line
    assert ("not seen" in line) is unseen
