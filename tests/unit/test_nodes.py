"""The head's view of its other nodes, with a stand-in for srun that speaks as their workers do."""

import os

from slurm_ray_flow.remote import nodes
from slurm_ray_flow.remote.events import Run
from support import wait_for

STAND_IN = """#!/bin/sh
echo '{"node": "c2", "what": "ready", "cpus": 1}'
echo '{"node": "c3", "what": "ready", "cpus": 1}'
exec cat > /dev/null
"""


def test_nodes_that_have_become_silent_are_lost_and_the_head_goes_on(tmp_path, monkeypatch):
    srun = tmp_path / "srun"
    srun.write_text(STAND_IN)
    srun.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 0.2)
    others = nodes.Nodes(Run(str(tmp_path), "run"), ["c2", "c3"])
    lost = []
    wait_for(lambda: lost.extend(others.listen()) or len(lost) == 2)
    assert sorted(lost) == ["c2", "c3"]
    assert all("silent" in why for why in others.lost.values())
    assert others.listen() == []
    others.end()
