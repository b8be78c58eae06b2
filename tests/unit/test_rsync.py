"""What rsync prints, as it printed it (tests/recorded/rsync), and which rsync is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_ray_flow.blocks import rsync
from slurm_ray_flow.core.errors import SyncError

RECORDED = Path(__file__).parents[1] / "recorded" / "rsync"
SENT = ("line\nbreak-\udce9.py", "main.py", "data/a b.csv")


@pytest.mark.parametrize(("recorded", "sent"), [("here.txt", 317), ("to-another-host.txt", 311)])
def test_what_rsync_prints_is_understood(recorded: str, sent: int) -> None:
    copied = rsync.parsed((RECORDED / recorded).read_text())
    assert (copied.names, copied.bytes_sent) == (SENT, sent)


def test_an_answer_that_is_not_of_rsync_is_an_error() -> None:
    with pytest.raises(SyncError, match="can't be understood"):
        rsync.parsed("Welcome to this cluster!\n")


@pytest.mark.parametrize(
    "version", [(RECORDED / "version.txt").read_text(), "rsync  version v3.1.3  protocol version 31"]
)
def test_a_new_enough_rsync_is_taken(version: str) -> None:
    rsync.checked_version(version)


@pytest.mark.parametrize(
    "version",
    ["rsync  version 3.0.9  protocol version 30", "openrsync: protocol version 29\nrsync version 2.6.9 compatible", ""],
)
def test_an_old_or_other_rsync_is_refused_with_advice(version: str) -> None:
    with pytest.raises(SyncError, match=r"rsync 3\.1 or later is needed") as caught:
        rsync.checked_version(version)
    assert "brew install rsync" in caught.value.advice
