"""The head's view of its other nodes, with a stand-in for srun that speaks as their workers do."""

import os

import pytest

from slurm_ray_flow.remote.driver import ray_session
from slurm_ray_flow.remote.scheduler import node_launcher
from slurm_ray_flow.remote.shared.events import RunFiles
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
    monkeypatch.setattr(node_launcher, "SILENT_SECONDS", 0.2)
    others = node_launcher.NodeWorkers(RunFiles(str(tmp_path), "run"), ["c2", "c3"])
    lost = []
    wait_for(lambda: lost.extend(others.listen()) or len(lost) == 2)
    assert sorted(lost) == ["c2", "c3"]
    assert all("silent" in why for why in others.lost.values())
    assert others.listen() == []
    others.end()


def test_a_node_whose_last_word_is_read_when_the_step_has_ended_is_news(tmp_path, monkeypatch):
    """It is read where the step's end is noted, a moment before anybody listens."""
    srun = tmp_path / "srun"
    srun.write_text("""#!/bin/sh
echo '{"node": "c2", "what": "ready", "cpus": 1}'
echo '{"node": "c2", "what": "ended", "why": "Slurm told it to end"}'
""")
    srun.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    others = node_launcher.NodeWorkers(RunFiles(str(tmp_path), "run"), ["c2"])
    wait_for(lambda: node_launcher._has_ended(others.pid))
    others.ended(0)
    assert others.listen() == ["c2"]


@pytest.mark.parametrize(
    ("strategy", "bundles", "part"),
    [
        ("", [{"CPU": 3}], "a task or an actor asks for CPU 3; there are 2 nodes of CPU 2; 1 node was lost"),
        ("", [{"GPU": 1, "memory": 1 << 30}], "asks for GPU 1, memory 1 GiB; there are 2 nodes of GPU 0, memory 2 GiB"),
        ("STRICT_SPREAD", [{"CPU": 1}] * 3, "(STRICT_SPREAD) asks for 3 times CPU 1"),
        ("STRICT_PACK", [{"CPU": 2}, {"CPU": 1}], "(STRICT_PACK) asks for CPU 2 and CPU 1"),
        ("PACK", [{"CPU": 1}] * 5, "(PACK) asks for 5 times CPU 1"),
        ("SPREAD", [{"CPU": 1}] * 4, ""),
        ("STRICT_PACK", [{"CPU": 1}] * 2, ""),
        ("", [{"CPU": 2}], ""),
        ("", [{"CPU_group_0_ab": 1}], ""),
    ],
)
def test_what_no_node_can_take_is_told(strategy, bundles, part):
    found = list(ray_session.in_vain([{"CPU": 2, "memory": 2 << 30}] * 2, 1, [(strategy, bundles)]))
    assert len(found) == bool(part)
    assert part in "".join(found)
