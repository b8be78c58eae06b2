"""What a run used is told in the terminal and in Prefect, and kept for `srf runs`."""

import pytest

from slurm_ray_flow.blocks import store
from support import wait_for

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def plain_lines(monkeypatch):
    monkeypatch.setenv("SRF_PROGRESS", "plain")


def test_a_run_that_asked_for_too_much_is_told_so(work, capsys, api):
    import tries

    tries.idle(11)
    err = capsys.readouterr().err
    assert "used 0.0 of 2 CPUs" in err
    assert "next time: cpus_per_node=1, memory='256M'" in err
    record = next(iter(store.records()))
    assert record.usage["cpus"] == 2
    filtered = {"artifacts": {"flow_run_id": {"any_": [record.run_id]}, "key": {"any_": ["use-local"]}}}
    wait_for(lambda: api.post("/artifacts/filter", filtered))
    [artifact] = api.post("/artifacts/filter", filtered)
    assert "| memory |" in artifact["data"]
    assert "used 0.0 of 2 CPUs" in artifact["description"]


def test_a_short_run_is_not_judged(work, capsys):
    import tries

    tries.idle(0)
    assert "next time" not in capsys.readouterr().err
