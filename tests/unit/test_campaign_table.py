"""The cells of a campaign's table, and which of several outcomes of an item counts."""

import collections
import datetime
import decimal
import enum
import math
import pathlib

import pytest

from slurm_ray_flow.core.grid.model import Campaign, ItemState
from slurm_ray_flow.core.grid.table import argument_cells, cell_of, columns_of, value_cells
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from slurm_ray_flow.grid.outcome_log import Frame, OutcomeLog
from slurm_ray_flow.interface.campaign_outcomes import Numbers, OutcomeReader

Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("args", "kwargs", "cells"),
    [
        ((3,), {}, {"n": 3}),
        (((3, "a"),), {}, {"n.0": 3, "n.1": "a"}),
        (({"x": 1, "y": None},), {}, {"x": 1, "y": None}),
        ((Point(1, 2),), {}, {"x": 1, "y": 2}),
        (([1, 2],), {}, {"n": "[1, 2]"}),
        (({"x": [1]},), {}, {"n": '{"x": [1]}'}),
        (({},), {}, {"n": "{}"}),
        ((1, 2, 3), {}, {"n": 1, "m": 2, "argument2": 3}),
        ((1,), {"state": "on", "value.x": 2}, {"n": 1, "argument.state": "on", "argument.value.x": 2}),
        ((), {"m": (1, 2)}, {"m.0": 1, "m.1": 2}),
        ((1, (1, 2)), {}, {"n": 1, "m": "[1, 2]"}),
    ],
)
def test_arguments_have_columns_by_their_names(args, kwargs, cells):
    assert argument_cells(args, kwargs, ["n", "m"]) == cells


def test_a_value_has_one_column_or_one_for_each_key():
    assert value_cells(5) == {"value": 5}
    assert value_cells({"loss": 0.5, "epochs": 3}) == {"value.loss": 0.5, "value.epochs": 3}
    assert value_cells({"loss": [1]}) == {"value": '{"loss": [1]}'}
    assert value_cells({}) == {"value": "{}"}
    assert value_cells((1, 2)) == {"value": "[1, 2]"}
    assert columns_of(["n"], ["value.loss"]) == ["number", "n", "state", "seconds", "value.loss", "error"]
    assert columns_of([], []) == ["number", "state", "seconds", "value", "error"]


def test_a_cell_is_plain():
    numpy = pytest.importorskip("numpy")
    found = [cell_of(value) for value in (numpy.float64(0.5), numpy.int8(3), numpy.bool_(True))]
    assert [(type(value), value) for value in found] == [(float, 0.5), (int, 3), (bool, True)]
    assert cell_of(Colour.RED) == "red"
    assert cell_of(decimal.Decimal("1.5")) == "1.5"
    assert cell_of(pathlib.PurePosixPath("a/b")) == "a/b"
    assert cell_of(datetime.date(2026, 1, 2)) == datetime.date(2026, 1, 2)
    assert math.isnan(cell_of(math.nan))
    assert cell_of(b"x") == "b'x'"
    assert cell_of("\udcff").encode()

    class Odd:
        def __repr__(self):
            raise ValueError

    assert cell_of(Odd()) == "a Odd"


@pytest.fixture
def log():
    with OutcomeLog(CampaignFolder("0" * 32).outcomes, 0) as opened:
        yield opened


def frames(log, *written):
    """Append frames; gives the status of a campaign that has them."""
    log.append([Frame(number, int(kind), 0.0, data) for number, kind, data in written])
    return Campaign("0" * 32, "", "", "", outcomes_size=log.size, resubmitted=1)


BAD, GOOD, AGAIN = ItemState.FAILED, ItemState.SUCCEEDED, ItemState.WAITING


def read(reader, status):
    return [(frame.number, frame.data) for _, frame in reader.new_frames(status)]


def test_the_last_outcome_of_an_item_counts(log):
    early, late = OutcomeReader("0" * 32), OutcomeReader("0" * 32)
    status = frames(log, (0, BAD, b"a"), (1, GOOD, b"b"), (2, BAD, b"c"))
    assert read(early, status) == [(0, b"a"), (1, b"b"), (2, b"c")]
    status = frames(log, (0, AGAIN, b""), (2, AGAIN, b""), (0, GOOD, b"d"))
    assert read(late, status) == [(1, b"b"), (0, b"d")]
    assert read(early, status) == [(0, b"d")]
    assert set(early.superseded) == {0, 2}
    assert read(early, status) == []
    status = frames(log, (2, BAD, b"e"), (2, AGAIN, b""), (2, BAD, b"f"))
    assert read(early, status) == read(late, status) == [(2, b"f")]


def test_a_log_without_resubmitted_items_is_read_once(log):
    status = frames(log, (0, GOOD, b"a"))
    assert read(OutcomeReader("0" * 32), status) == [(0, b"a")]
    assert read(OutcomeReader("0" * 32), Campaign("0" * 32, "", "", "")) == []


def test_numbers_are_counted_once():
    numbers = Numbers()
    assert [numbers.add(number) for number in (5, 100_000, 5, 0, 0, 7)] == [True, True, False, True, False, True]
    assert numbers.count == 4
