"""The report of a cluster: on this machine, with a real lock, and of clusters that can't be asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from slurm_ray_flow.blocks.local_machine import LocalMachine
from slurm_ray_flow.core.errors import ConnectionFailed, LockFailed, LogInFailed
from slurm_ray_flow.core.lock import Lock
from slurm_ray_flow.tasks.cluster_report import report, reports


class Machine(LocalMachine):
    """This machine under a lock. Its requests are noted; where there is an error, it answers none."""

    path: str = ""
    error: Any = None
    noted: list[list[str]] = Field(default_factory=list)

    @property
    def lock(self) -> Lock | None:
        return Lock(self.path, 2) if self.path else None

    def ask_all(self, requests: Sequence[Any], tell: Any = lambda _: None) -> list[Any]:
        self.noted.append([name for name, _ in requests])
        if self.error:
            raise self.error
        return super().ask_all(requests, tell)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "the.lock").touch()
    return Machine(root=tmp_path / "root", path=str(tmp_path / "the.lock"))


def test_what_operations_answer_takes_one_round_trip(machine: Machine) -> None:
    seen = report(machine, "load", "lock", "idle")
    assert machine.noted == [["machines.load", "queue.state", "warm.listed"]]
    said = seen.to_json()
    assert (said["state"], said["slots"], said["slots_free"], said["holders"]) == ("up", 2, 2, [])
    assert (said["running"], said["waiting"]) == (0, 0)
    assert said["cpus"] > 0 and seen.idle == []


def test_nothing_is_asked_that_nobody_wants(machine: Machine) -> None:
    seen = report(machine, "partitions", "jobs")
    assert machine.noted == []
    assert (seen.load, seen.lock, seen.partitions, seen.findings) == (None, None, None, None)


def test_that_it_can_not_be_asked_is_in_the_report_and_raised_where_it_counts(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "the.lock").unlink()
    (tmp_path / "the.lock").symlink_to(tmp_path / "elsewhere")
    seen = report(machine, "lock")
    assert seen.down and seen.why and seen.advice and seen.lock is None
    with pytest.raises(LockFailed):
        seen.answered()


def test_findings_of_a_cluster_that_lets_nobody_in_say_so(machine: Machine) -> None:
    refusing = machine.model_copy(update={"error": LogInFailed("no", advice="another key")})
    found = {finding.name: finding.state for finding in report(refusing, "findings").findings or ()}
    assert (found["log-in"], found["disk"]) == ("failed", "not known")


def test_one_that_hangs_or_refuses_hides_no_other(machine: Machine) -> None:
    go = threading.Event()

    class Hanging(Machine):
        def ask_all(self, requests: Sequence[Any], tell: Any = lambda _: None) -> list[Any]:
            go.wait(30)
            return super().ask_all(requests, tell)

    away, locked = (
        machine.model_copy(update={"error": error}) for error in (ConnectionFailed("no route"), LogInFailed("a code"))
    )
    try:
        seen = reports([Hanging(root=machine.root), machine, away, locked], seconds=2.0)
    finally:
        go.set()
    assert [one.state for one in seen] == ["away", "up", "away", "locked"]
    assert [bool(one.why) for one in seen] == [True, False, True, True]
