"""What the answers of a cluster are judged to be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from slurm_ray_flow.core.artifacts import artifact_key
from slurm_ray_flow.core.cluster_report import HomeFacts, judged, not_logged_in
from slurm_ray_flow.core.errors import (
    ConnectionFailed,
    EnvironmentFailed,
    HostKeyFailed,
    LogInFailed,
    SlurmRayFlowError,
)
from slurm_ray_flow.remote.agent import probe

GIB = 1024**3
LOCK = {"path": "/tmp/l", "exists": True, "writable": True, "holders": [], "waiting": [], "slots": 1, "free": 1}
ACCOUNT = {
    "user": "alice",
    "host": "desi",
    "home": "/home/alice",
    "mode": 0o700,
    "writable": True,
}
ROOT = {"path": "/r", "exists": True, "owner": 1, "ours": True, "writable": True}
DISK = {"bytes": 50 * GIB, "all_bytes": 90 * GIB, "files": 10**6}


def state_of(name: str, answer: dict[str, Any], **home: Any) -> str:
    (finding,) = judged({name: answer}, HomeFacts(**{"now": 1000.0, "rsync": "3.2.7", "version": "3.11", **home}))
    assert finding.state == "ok" or finding.advice or "error" in answer
    return finding.state


@pytest.mark.parametrize(
    ("name", "answer", "state"),
    [
        ("account", ACCOUNT, "ok"),
        ("account", {**ACCOUNT, "mode": 0o775}, "warning"),
        ("account", {**ACCOUNT, "writable": False}, "warning"),
        ("root", ROOT, "ok"),
        ("root", {**ROOT, "exists": False, "ours": False}, "ok"),
        ("root", {**ROOT, "ours": False}, "failed"),
        ("root", {**ROOT, "writable": False}, "failed"),
        ("disk", DISK, "ok"),
        ("disk", {**DISK, "bytes": 2 * GIB}, "warning"),
        ("disk", {**DISK, "bytes": 1000}, "failed"),
        ("disk", {**DISK, "files": 20}, "failed"),
        ("disk", {"bytes": 50 * GIB, "all_bytes": 90 * GIB}, "ok"),
        ("quota", {}, "ok"),
        ("quota", {"bytes": 0, "files": 5}, "failed"),
        ("shared memory", {"bytes": 0, "all_bytes": 0}, "warning"),
        ("shared memory", {"bytes": 64 * 1024**2, "all_bytes": 64 * 1024**2}, "warning"),
        ("rsync", {"version": "3.2.7"}, "ok"),
        ("rsync", {"version": "2.6.9"}, "warning"),
        ("rsync", {"version": ""}, "warning"),
        ("lock", LOCK, "ok"),
        ("lock", {**LOCK, "writable": False}, "failed"),
        ("lock", {"error": "is a link", "advice": "remove it"}, "failed"),
        ("clock", {"began": 999.0, "ended": 1003.0}, "ok"),
        ("clock", {"began": 1500.0, "ended": 1501.0}, "warning"),
        ("registry", {"address": "https://x", "reached": True}, "ok"),
        ("registry", {"address": "https://x", "reached": False}, "warning"),
    ],
)
def test_each_answer_has_its_verdict(name: str, answer: dict[str, Any], state: str) -> None:
    assert state_of(name, answer) == state


def test_home_is_part_of_the_verdict() -> None:
    assert state_of("rsync", {"version": "3.2.7"}, rsync="") == "warning"
    assert state_of("gpus", {"count": 1}, gpus=2) == "failed"
    assert state_of("registry", {"address": "https://x", "reached": False}, wheels="upload") == "ok"


def test_the_holder_of_the_lock_is_named() -> None:
    held = {**LOCK, "holders": [{"user": "alice", "since": time.time()}], "waiting": [{}, {}]}
    (finding,) = judged({"lock": held}, HomeFacts(0.0, "3.2.7", "3.11"))
    assert "alice" in finding.found and "2 waiting" in finding.found


@pytest.mark.parametrize(
    ("error", "states"),
    [
        (HostKeyFailed("unknown", advice="srf trust desi"), ["failed", "not known"]),
        (LogInFailed("no", advice="another key"), ["ok", "failed"]),
        (ConnectionFailed("no route", advice="VPN"), ["not known", "failed"]),
    ],
)
def test_who_is_not_let_in_knows_why_and_nothing_else(error: SlurmRayFlowError, states: list[str]) -> None:
    found = not_logged_in(error)
    assert [finding.state for finding in found[:2]] == states
    assert {finding.state for finding in found[2:]} == {"not known"}
    assert [finding.advice for finding in found if finding.state == "failed"] == [error.advice]


@pytest.mark.parametrize(
    ("error", "name"), [(EnvironmentFailed("no Python"), "python"), (SlurmRayFlowError("a link"), "root")]
)
def test_who_is_let_in_and_gets_no_further_is_not_told_of_the_log_in(error: SlurmRayFlowError, name: str) -> None:
    found = {finding.name: finding.state for finding in not_logged_in(error)}
    assert (found.pop("host key"), found.pop("log-in"), found.pop(name)) == ("ok", "ok", "failed")
    assert set(found.values()) == {"not known"}


def test_a_look_downloads_no_python(tmp_path: Path) -> None:
    answer = probe.python_of("download", "3.11", str(tmp_path))
    assert not list(tmp_path.iterdir())
    (finding,) = judged({"python": answer}, HomeFacts(0.0, "3.2.7", "3.11"))
    assert (finding.state, "3.11" in finding.found) == ("ok", True)


def test_a_question_without_an_answer_holds_back_no_other() -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("odd")

    began = time.monotonic()
    questions = {"slow": lambda: time.sleep(20) or {}, "broken": broken, "well": lambda: {"x": 1}}
    answers = probe.answered(questions, within=0.3)
    assert time.monotonic() - began < 5
    assert answers["well"] == {"x": 1}
    assert "error" in answers["slow"] and "odd" in answers["broken"]["error"]


def test_no_credentials_of_an_index_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:9/simple")
    answer = probe.registry()
    assert not answer["reached"]
    assert "secret" not in str(answer) and "127.0.0.1:9" in answer["address"]


def test_keys_of_artifacts_are_as_prefect_wants_them() -> None:
    assert artifact_key("check", "Desi_2 @ unil.ch") == "check-desi-2-unil-ch"
