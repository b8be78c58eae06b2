"""How a server's processors, memory and cards are shared out."""

import pytest

from slurm_ray_flow.remote.lock import turn
from slurm_ray_flow.remote.shared.protocol import OperationError

MACHINE = turn.ServerCapacity(cpus=list(range(8)), memory=80)


@pytest.mark.parametrize(
    ("of", "spec", "count"),
    [
        (1, {"cpus": 8}, 1),
        (4, {}, 1),
        (4, {"cpus": 2}, 1),
        (4, {"cpus": 3}, 2),
        (4, {"cpus": 1, "memory": 41}, 3),
        (4, {"cpus": 8, "memory": 80}, 4),
    ],
)
def test_a_run_takes_as_many_slots_as_its_largest_share_needs(of, spec, count):
    assert turn.needs({"slots": of}, spec, MACHINE).slots == count


@pytest.mark.parametrize("spec", [{"cpus": 9}, {"memory": 81}, {"gpus": 3}])
def test_more_than_there_is_is_rejected(spec):
    with pytest.raises(OperationError) as caught:
        turn.needs({"slots": 4, "gpus": 2}, spec, MACHINE)
    assert caught.value.cause == "rejected"


@pytest.mark.parametrize("of", [2, 3, 4, 5, 8])
def test_the_slots_of_a_server_are_all_of_its_processors_and_each_once(of):
    parts = [turn.grant({"slots": of}, {}, MACHINE, [number], []).cpus for number in range(of)]
    assert sorted(cpu for part in parts for cpu in part) == MACHINE.cpus
    assert all(parts)


def test_a_slot_comes_with_its_share_of_the_memory_unless_less_is_asked_for():
    assert turn.grant({"slots": 4}, {}, MACHINE, [1, 2], []).memory == 40
    assert turn.grant({"slots": 4}, {"memory": 7}, MACHINE, [1], []).memory == 7
    assert turn.grant({"slots": 1}, {}, MACHINE, [0], []).memory is None


def test_no_more_processors_than_asked_for():
    assert turn.grant({"slots": 4}, {"cpus": 1}, MACHINE, [1], []).cpus == [2]
    assert turn.grant({"slots": 1}, {"cpus": 3}, MACHINE, [0], []).cpus == [0, 1, 2]


def test_cards_that_the_server_hides_from_its_users_are_not_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert turn.gpu_ids({"slots": 2, "gpus": None}, requested=1) == ["2", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(turn.gpu_ids({"slots": 2, "gpus": None}, requested=3)) >= 3


def test_cards_go_by_name_and_who_shares_a_server_sees_no_other():
    shared, alone = {"slots": 2, "gpus": ["GPU-a", "GPU-b"]}, {"slots": 1, "gpus": 2}
    assert turn.gpu_ids(shared) == ["GPU-a", "GPU-b"]
    assert turn.gpu_ids(alone) == ["0", "1"]
    assert turn.grant(shared, {}, MACHINE, [0], ["GPU-b"]).variables() == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert turn.grant(shared, {}, MACHINE, [0], []).variables() == {"CUDA_VISIBLE_DEVICES": ""}
    assert turn.grant(alone, {}, MACHINE, [0], []).variables() == {}


@pytest.mark.parametrize(("text", "numbers"), [("0-3,8\n", [0, 1, 2, 3, 8]), ("5", [5]), ("\n", [])])
def test_the_kernels_lists(text, numbers):
    assert turn.parse_list(text) == numbers
