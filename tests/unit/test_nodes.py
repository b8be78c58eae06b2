"""The head's view of its other nodes, with a launcher whose programs speak as their workers do."""

import pytest

from slurm_ray_flow.remote.driver import ray_session
from slurm_ray_flow.remote.scheduler import node_launcher
from slurm_ray_flow.remote.scheduler.node_launcher import NodeLauncher, NodeWorkers, Srun
from slurm_ray_flow.remote.shared.events import RunFiles
from support import wait_for

READY = """echo '{"node": "c2", "what": "ready", "cpus": 1}'; echo '{"node": "c3", "what": "ready", "cpus": 1}';"""
STAYS = "exec cat > /dev/null"


class Shell(NodeLauncher):
    """Runs a line of shell for each node, or one for all of them."""

    def __init__(self, script, together=False):
        self.script, self.together = script, together

    def commands(self, names, program):
        return {tuple(names): self.command("", program)} if self.together else super().commands(names, program)

    def command(self, name, program):
        return ["/bin/sh", "-c", self.script, name]


@pytest.fixture
def others(tmp_path):
    started = []

    def start(launcher):
        started.append(NodeWorkers(RunFiles(str(tmp_path), "run"), ["c2", "c3"], launcher))
        return started[0]

    yield start
    started[0].end()


def test_nodes_that_have_become_silent_are_lost_and_the_head_goes_on(others, monkeypatch):
    monkeypatch.setattr(node_launcher, "SILENT_SECONDS", 0.2)
    workers, lost = others(Shell(READY + STAYS, together=True)), []
    wait_for(lambda: lost.extend(workers.listen()) or len(lost) == 2)
    assert sorted(lost) == ["c2", "c3"]
    assert all("silent" in why for why in workers.lost.values())
    assert workers.listen() == []


def test_a_node_whose_last_word_is_read_when_the_step_has_ended_is_news(others):
    """It is read where the step's end is noted, a moment before anybody listens."""
    script = """echo '{"node": "c2", "what": "ended", "why": "it was told to end"}'; sleep 0.1"""
    workers = others(Shell(READY + script, together=True))
    (pid,) = workers.pids
    wait_for(workers._channels[0].has_ended)
    workers.ended(pid, 0)
    assert sorted(workers.listen()) == ["c2", "c3"]
    assert workers.lost["c2"] == "it was told to end"


def test_of_nodes_with_a_process_each_one_is_lost_with_its_own(others):
    workers = others(Shell("""echo '{"node": "'$0'", "what": "ready", "cpus": 1}'; """ + STAYS))
    wait_for(lambda: workers.listen() or workers.all_ready)
    workers.ended(workers.pids[1], 255)
    assert workers.listen() == ["c3"]
    assert list(workers.lost) == ["c3"]


def test_no_process_speaks_for_a_node_that_it_does_not_serve(others):
    workers = others(Shell("[ $0 = c3 ] || { " + READY + " }; " + STAYS))
    wait_for(lambda: workers.listen() or "c2" in workers.ready)
    assert list(workers.ready) == ["c2"]


def test_srun_starts_one_step_on_all_nodes_but_the_first():
    ((names, command),) = Srun().commands(["c2", "c3"], ["python", "-I"]).items()
    assert names == ("c2", "c3")
    assert command[0] == "srun"
    assert command[-2:] == ["python", "-I"]
    assert {"--relative=1", "--nodes=2", "--ntasks=2"} < set(command)


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
    found = list(ray_session.unfulfillable([{"CPU": 2, "memory": 2 << 30}] * 2, 1, [(strategy, bundles)]))
    assert len(found) == bool(part)
    assert part in "".join(found)
