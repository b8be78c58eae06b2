"""What every test of a contract gets: each kind of cluster in its turn."""

import pytest

from contract.kinds import ENVIRONMENTS, KINDS, Lab
from slurm_ray_flow.blocks.ssh.connection import connections


@pytest.fixture(params=KINDS)
def kind(request):
    yield KINDS[request.param](request)
    for connection in connections():  # else the server's MaxSessions are used up, and the next test waits for a lease
        for (root, _), agent in connection.agents.items():
            if root != ENVIRONMENTS:
                agent.close()


@pytest.fixture
def cluster(kind):
    return kind.make(kind.folder / "root")


@pytest.fixture
def lab(cluster, kind, tmp_path):
    made = Lab(cluster, kind, tmp_path)
    yield made
    for paths in made.runs:
        made.cancel(paths)
        made.gone(paths)
