"""What `srf init` proposes for what it found, and what it makes of answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.blocks.ssh import SshConnection
from slurm_ray_flow.cli import proposals
from slurm_ray_flow.cli.proposals import Questions, SurveyResult, proposed

HERE = f"{sys.version_info.major}.{sys.version_info.minor}.1"
GIB = 1024**3
Asked = Callable[..., tuple[str, dict[str, Any]]]


def found(**other: Any) -> SurveyResult:
    known: dict[str, Any] = {"user": "alice", "home": "/home/alice", "host": "desi", "cpus": 8, "gpus": 0}
    known |= {"memory": 64 * GIB, "home_bytes": 500 * GIB, "slurm": "no", "accounts": [], "modules": False}
    return SurveyResult(**{**known, "pythons": [{"path": "/usr/bin/python3", "version": HERE}], "scratch": [], **other})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """What is proposed when somebody types these answers; all of them must be asked for."""
    left: list[str] = []
    monkeypatch.setattr("builtins.input", lambda _: left.pop(0))

    def answered(what: SurveyResult, *answers: str, known: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        left.extend(answers)
        return proposed(what, SshConnection(host="desi"), "desi", None, known or {}, Questions())

    yield answered
    assert not left


SMALL = {"home_bytes": 5 * GIB, "scratch": [{"path": "/scratch", "bytes": 900 * GIB}]}


def test_a_large_home_and_a_fitting_python_ask_for_nothing_but_the_lock(asked: Asked) -> None:
    assert asked(found(scratch=SMALL["scratch"]), "") == ("ssh-server", {})
    assert asked(found(), "no") == ("ssh-server", {"lock_path": ""})


@pytest.mark.parametrize(
    ("answers", "fields"),
    [
        ([""], {"root": "/scratch/alice/.slurm-ray-flow"}),
        (["1"], {}),
        (["relative", "9", "~/large"], {"root": "~/large"}),
    ],
)
def test_a_small_home_is_asked_about(asked: Asked, answers: list[str], fields: dict[str, Any]) -> None:
    assert asked(found(**SMALL), *answers, "") == ("ssh-server", fields)


@pytest.mark.parametrize(
    ("answers", "python"),
    [([""], "download"), (["python3", "module:python/3.11"], "module:python/3.11"), (["/opt/python"], "/opt/python")],
)
def test_a_missing_python_is_asked_about(asked: Asked, answers: list[str], python: str) -> None:
    pythons = [{"path": "/usr/bin/python3", "version": "3.9.2"}]
    assert asked(found(pythons=pythons), *answers, "")[1] == {"python": python}


def test_what_the_command_line_says_is_not_asked_for(asked: Asked) -> None:
    known = {"root": "/here", "python": "download", "lock_path": "/tmp/lock"}
    assert asked(found(**SMALL, pythons=[]), known=known) == ("ssh-server", known)


@pytest.mark.parametrize(
    ("answers", "fields"), [([""], {}), (["3"], {"account": "theirs"}), (["thiers", "ours"], {"account": "ours"})]
)
def test_one_of_several_accounts_is_chosen(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], fields: dict[str, Any]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: answers.pop(0))
    assert proposals._account(["ours", "theirs"], {}, Questions()) == fields
    assert not answers


def test_this_machine_without_slurm_needs_not_be_saved() -> None:
    with pytest.raises(OptionError, match="no Slurm"):
        proposed(found(), None, "here", None, {}, Questions(yes=True))
