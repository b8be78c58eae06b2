import pytest

from slurm_ray_flow.core.slurm.queue import MOST, expanded


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("c1", ["c1"]),
        ("c[1-3]", ["c1", "c2", "c3"]),
        ("dna[001-003,007],gpu1", ["dna001", "dna002", "dna003", "dna007", "gpu1"]),
        ("r[1-2]n[8-9]", ["r1n8", "r1n9", "r2n8", "r2n9"]),
        ("a-b[09-10].site", ["a-b09.site", "a-b10.site"]),
    ],
)
def test_a_host_list_is_written_out(text, names):
    assert expanded(text) == names


def test_a_list_of_a_hostile_length_ends():
    assert len(expanded("c[1-999999999]")) == MOST
