"""What the grid's engine tells Prefect: each new event once, in order, and that a cluster answers again."""

import pytest

import grid_lab
from slurm_ray_flow.core.grid.model import CampaignState
from slurm_ray_flow.core.prefect_events import CAMPAIGN_BEGAN, CAMPAIGN_ENDED, CLUSTER_BACK, CLUSTER_SILENT
from slurm_ray_flow.grid.engine import Engine
from slurm_ray_flow.grid.store import Store


@pytest.fixture
def told():
    return []


@pytest.fixture
def engine(tmp_path, told):
    store = Store(f"sqlite:///{tmp_path}/grid.db")
    store.migrate()
    made = Engine(store, lambda *_: None, lambda *_: 2, send=told.append)
    yield made
    made.stop()
    store.close()


def test_a_cluster_that_goes_away_and_comes_back_is_told_once_each(engine, told):
    campaign = grid_lab.campaign(10)
    engine.add(campaign)
    for _ in range(3):
        engine.note(campaign.id, "desi", "warning", "connection", "ConnectionFailed", "no route")
    [event] = engine.store.events(campaign.id)
    assert (event.code, event.count) == ("connection", 3)
    engine.note_answer(campaign.id, "desi")
    engine.note_answer(campaign.id, "desi")
    [back] = engine.store.events(campaign.id)
    assert (back.code, back.level, back.count) == ("back", "info", 1)
    engine.cancel(campaign.id, "it was wrong")
    engine.cancel(campaign.id, "it was wrong")
    engine.stop()
    assert [one.event for one in told] == [CAMPAIGN_BEGAN, CLUSTER_SILENT, CLUSTER_BACK, CAMPAIGN_ENDED]
    assert told[1].payload["cluster"] == "desi"
    assert "it was wrong" in told[-1].payload["message"]
    assert engine.store.campaign(campaign.id).state is CampaignState.CANCELLED
