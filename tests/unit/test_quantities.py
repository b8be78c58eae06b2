from datetime import timedelta

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.core.quantities import (
    brief_duration,
    brief_memory,
    format_duration,
    format_memory,
    parse_duration,
    parse_memory,
)


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("64G", 64 * 1024**3),
        ("64GB", 64 * 1024**3),
        ("64 GiB", 64 * 1024**3),
        ("512m", 512 * 1024**2),
        ("1.5K", 1536),
        ("100B", 100),
        (4096, 4096),
        ("2T", 2 * 1024**4),
    ],
)
def test_memory_as_people_write_it(written, amount):
    assert parse_memory(written) == amount


@pytest.mark.parametrize("written", ["", "lots", "-1G", "0", 0, -5, 1.5, None, True, "1G2", "G"])
def test_what_is_no_memory_is_refused_with_an_example(written):
    with pytest.raises(OptionError, match="64G"):
        parse_memory(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2h30m", 9000),
        ("90 min", 5400),
        ("1d", 86400),
        ("1.5h", 5400),
        ("10s", 10),
        ("1w", 604800),
        (90, 90),
        (0.5, 0.5),
        (timedelta(hours=1), 3600),
        # sbatch(1), --time: "minutes:seconds", "hours:minutes:seconds", "days-hours", "days-hours:minutes",
        # "days-hours:minutes:seconds"
        ("90:30", 5430),
        ("1:02:03", 3723),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:00:00", 129600),
    ],
)
def test_time_as_people_write_it(written, seconds):
    assert parse_duration(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "-1h", 0, -1, None, False, "1h!", "h", float("inf"), float("nan")])
def test_what_is_no_time_is_refused_with_an_example(written):
    with pytest.raises(OptionError, match="2h30m"):
        parse_duration(written)


def test_amounts_are_written_for_people():
    assert [format_memory(n) for n in (10, 1536, 3 * 1024**3, 2 * 1024**4)] == ["10 B", "1.5 KiB", "3.0 GiB", "2.0 TiB"]
    assert [format_duration(n) for n in (0.42, 75, 5400, 200000)] == ["0.4 s", "1 min 15 s", "1 h 30 min", "2 d 7 h"]


@pytest.mark.parametrize(
    ("amount", "written"),
    [(200 << 20, "200M"), (3 << 29, "1.5G"), (1 << 40, "1T"), (1000, "1000B"), ((1 << 30) + 1, "1.1G")],
)
def test_memory_as_an_option(amount, written):
    assert brief_memory(amount) == written
    assert parse_memory(written) >= amount


@pytest.mark.parametrize(
    ("seconds", "written"), [(2, "2s"), (0.4, "1s"), (5400, "1h30m"), (90061, "1d1h1m1s"), (172800, "2d")]
)
def test_a_duration_as_an_option(seconds, written):
    assert brief_duration(seconds) == written
    assert parse_duration(written) >= seconds


def test_a_number_without_a_unit_in_text_is_refused_with_both_readings():
    with pytest.raises(OptionError, match=r"has no unit") as told:
        parse_duration("90")
    assert '"90m"' in told.value.advice and '"90s"' in told.value.advice
    with pytest.raises(OptionError, match=r"has no unit") as told:
        parse_memory(" 4 ")
    assert "4G" in told.value.advice and "4M" in told.value.advice
