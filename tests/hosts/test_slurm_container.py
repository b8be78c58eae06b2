"""A container on the nodes of a Slurm cluster, by a stand-in for Apptainer (see stand_in_apptainer.py)."""

import pytest

from container_lab import STAND_IN, lay_image, lay_runtime
from hosts.launcher import USER

pytestmark = [pytest.mark.server, pytest.mark.ray]


@pytest.fixture
def image(jobs):
    """Lays an image whose Python is the one given, and the runtime; gives both folders."""

    def laid(python):
        folder = jobs.folder()
        for name in ("runtime", "image.sif"):
            jobs.host.run(USER, ["mkdir", f"{folder}/{name}"])
        jobs.host.path(f"{folder}/runtime/{STAND_IN.name}").write_bytes(STAND_IN.read_bytes())
        lay_runtime(jobs.host.path(f"{folder}/runtime"), python, f"{folder}/runtime/{STAND_IN.name}")
        lay_image(jobs.host.path(f"{folder}/image.sif"), python)
        return f"{folder}/image.sif", f"{folder}/runtime"

    return laid


def test_ray_runs_in_the_container_on_all_nodes(jobs, image):
    import spread

    jobs.host.run(USER, ["touch", "own"])
    python, outside = jobs.on(spread.places)()
    assert outside == [("c1", None, True), ("c2", None, True)]
    path, runtime = image(python)
    cluster = jobs.but(container=path, setup=[f'export PATH="{runtime}:$PATH"'])
    _, inside = jobs.on(spread.places, cluster=cluster)()
    assert inside == [("c1", path, False), ("c2", path, False)]
    _, against = jobs.on(spread.places, cluster=cluster, container="")()
    assert against == outside
    jobs.over()
