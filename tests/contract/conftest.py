"""What every test of a contract gets: each kind of cluster in its turn."""

import pytest

from contract.kinds import KINDS, Lab


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param](request)


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
