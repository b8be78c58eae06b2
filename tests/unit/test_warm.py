"""Two calls that come to one warm head at once."""

import json
import time
from pathlib import Path

import pytest

from slurm_ray_flow import LocalMachine, SlurmCluster
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.tasks import start_ray, warm
from slurm_ray_flow.tasks.run import Run

SPEC = dict.fromkeys(warm.NEEDS)


class Busy:
    """A machine where somebody else's call comes right after ours, and sorts before it."""

    again = False

    def __init__(self, root):
        self._machine = LocalMachine(root=root)

    def __getattr__(self, name):
        return getattr(self._machine, name)

    def announce(self, path):
        Path(path.parent, "0-before").touch()
        return self._machine.announce(path)

    def remove(self, path):
        return [self._machine.remove(path) for _ in range(1 + self.again)][-1]


class BusyAndAskedAgain(Busy):
    """It removes things twice, as when the first answer was lost with its connection."""

    again = True


@pytest.mark.parametrize("kind", [Busy, BusyAndAskedAgain])
def test_a_call_that_withdraws_looks_further(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    cluster = kind(tmp_path / "root")
    run = Run("mine", "f", cluster, 0)
    paths = RunPaths(cluster.root_folder, "warm-one")
    inbox = Path(paths.inbox("warm-one")).parent
    inbox.mkdir(parents=True)
    alive = {"event": "allocated", **processes.this()}
    Path(paths.events).write_text(json.dumps({"time": time.time(), **alive}) + "\n")
    cluster.write(warm.folder_of(SPEC, cluster) / "warm-one", b"")
    assert warm.take(run, SPEC, cluster) is None
    assert [path.name for path in inbox.iterdir()] == ["0-before"]


@pytest.mark.parametrize(
    "changed",
    [{"partition": "gpu"}, {"account": "gpu"}, {"sbatch_options": ["--exclusive"]}, {"setup": ["module load cuda"]}],
)
def test_a_block_that_asks_for_something_else_shares_no_warm_cluster(tmp_path, monkeypatch, changed):
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    machine = LocalMachine(root=tmp_path / "root")
    run, block = Run("mine", "f", machine, 0), SlurmCluster(partition="cpu")

    def folder(block, options):
        return warm.folder_of({**SPEC, "scheduler": start_ray._scheduler(run, block, options)}, machine)

    assert folder(block, Options()) == folder(block.model_copy(), Options().stating(partition="cpu"))
    assert folder(block, Options()) != folder(block.model_copy(update=changed), Options())


@pytest.mark.parametrize("changed", [{"path": "/run/lock/other.lock"}, {"slots": 2}, {"gpus": [0]}])
def test_who_needs_another_lock_shares_no_warm_cluster(tmp_path, changed):
    machine, lock = LocalMachine(root=tmp_path), {"path": "/run/lock/desi.lock", "slots": 1, "gpus": None}
    mine = {"owner": {"run": "mine"}, "label": "desi"}

    def folder(lock):
        return warm.folder_of({**SPEC, "lock": lock}, machine)

    assert folder(lock) == folder({**lock, **mine})
    assert len({folder(lock), folder({**lock, **changed}), folder(None)}) == 3
