"""Times, amounts and counts as Slurm's columns write them; and that no answer, however broken, breaks a reader."""

from __future__ import annotations

import random

import pytest

from slurm_ray_flow.core.slurm import accounting, queue, request, site, waiting
from slurm_recorded import RECORDED

NO_LIMIT = float("inf")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0),
        ("3:04", 184),
        ("02:03:04", 7384),
        ("1-02:03:04", 93784),
        ("1-12:30", 131400),
        ("7-00:00:00", 604800),
        ("00:00.250", 0.25),
        ("10", 600),
        ("UNLIMITED", NO_LIMIT),
        ("infinite", NO_LIMIT),
        ("N/A", None),
        ("INVALID", None),
        ("NONE", None),
        ("", None),
        ("²", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert queue.duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4000", 4000 * 1024**2),
        ("900K", 900 * 1024),
        ("4Gn", 4 * 1024**3),
        ("1.50T", 1536 * 1024**3),
        ("0", 0),
        ("UNLIMITED", None),
        ("", None),
        ("?", None),
    ],
)
def test_memory_without_a_unit_is_mebibytes(text: str, amount: int | None) -> None:
    assert queue.memory(text) == amount


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), ("4+", 4), ("1.2K", 1228), ("2M", 2 * 1024**2), ("", None), ("-1", None), ("c1", None)],
)
def test_counts(text: str, number: int | None) -> None:
    assert queue.count(text) == number


@pytest.mark.parametrize(
    ("text", "moment"),
    [("1795290058", 1795290058.0), ("N/A", None), ("0", None), ("4294967295", None), ("2026-11-21T19:20:47", None)],
)
def test_moments_are_seconds_since_1970_or_nothing(text: str, moment: float | None) -> None:
    assert queue.moment(text) == moment


ANSWERS = sorted(RECORDED.rglob("*.txt"))


@pytest.mark.parametrize("seed", range(10))
def test_a_broken_answer_breaks_no_reader(seed: int) -> None:
    chance = random.Random(seed)
    for text in (broken(path.read_text(encoding="utf-8"), chance) for path in ANSWERS):
        jobs = queue.parse_queue(text)
        for job in [*jobs.values(), *accounting.parse_accounting(text).values()]:
            assert waiting.waiting_text(job, waiting.ahead_of(job, jobs.values()), 1795290058.0)
            assert job.cause is None or job.group == "ended"
        found = site.parse_site(text, broken(text, chance), text, text)
        assert len(site.partition_table(found).rows) <= len(found.partitions)
        assert str(request.rejected(text))


def broken(text: str, chance: random.Random) -> str:
    letters = list(text)
    for _ in range(chance.randint(1, 20)):
        place = chance.randrange(len(letters) + 1)
        end = place + chance.choice([0, 1, 30])
        letters[place:end] = chance.choice(["\x1f", "9" * 12, "²", "\n", "", "-", "\x00", ",", "="])
    return "".join(letters)
