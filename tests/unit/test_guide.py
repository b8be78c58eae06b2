"""What `srf init` proposes for what it found."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.blocks.ssh import SshConnection
from slurm_ray_flow.cli.guide import GivenAnswers, Questions, SurveyResult, propose

HERE = f"{sys.version_info.major}.{sys.version_info.minor}.1"
GIB = 1024**3


def proposal(version: str = HERE, ssh: bool = True, **fields: Any) -> tuple[str, dict[str, Any]]:
    found = SurveyResult(
        user="alice", home="/home/alice", host="desi", cpus=8, gpus=0, memory=64 * GIB, home_bytes=500 * GIB,
        slurm="", oar="", modules=False, pythons=[{"path": "/usr/bin/python3", "version": version}], scratch=[],
    )  # fmt: skip
    wanted = GivenAnswers(None, {}, fields, here=not ssh, kind=None, overwrite=False)
    return propose(found, SshConnection(host="desi") if ssh else None, "desi", wanted, Questions(yes=True))


def test_a_fitting_python_needs_no_fields() -> None:
    assert proposal() == ("ssh-server", {})


def test_a_missing_python_is_downloaded_unless_the_command_line_names_one() -> None:
    assert proposal("3.9.2") == ("ssh-server", {"python": "download"})
    assert proposal("3.9.2", python="/opt/python")[1] == {"python": "/opt/python"}


def test_this_machine_without_a_scheduler_needs_not_be_saved() -> None:
    with pytest.raises(OptionError, match="no scheduler"):
        proposal(ssh=False)
