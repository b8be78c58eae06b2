"""A function over many values: found by its name, and what became of each."""

import logging
import sys

import pytest

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.tasks.campaign import (
    MOST_ROWS,
    CampaignValue,
    as_table,
    call_for_each,
    call_in_pilots,
    find_function,
    line_about,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "campaigned.py").write_text("def plain(n): ...\nclass f:\n    map = staticmethod(lambda *a, **b: [])\n")
    yield str(tmp_path)
    sys.modules.pop("campaigned", None)


def test_a_function_is_found_in_its_project_s_folder(project):
    assert hasattr(find_function("campaigned:f", project), "map")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("campaigned", "does not name a function"),
        ("campaigned:", "does not name a function"),
        ("campaigned:plain", "is not decorated"),
        ("campaigned:gone", "is not there"),
        ("nowhere_at_all:f", "no module 'nowhere_at_all'"),
    ],
)
def test_what_is_none_is_told(project, name, said):
    with pytest.raises(OptionError, match=said):
        find_function(name, project)


def test_a_folder_that_is_not_there_is_told():
    with pytest.raises(OptionError, match="no such folder"):
        find_function("train:train", "/nowhere/at/all")


class FakeHandle:
    """A fake of a handle: its run has ended."""

    def __init__(self, value, run_id):
        self.value, self.run_id = value, run_id

    def result(self):
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class FakeFunction:
    """A fake of a decorated function."""

    cancelled = False

    def __init__(self, *ends):
        self.ends = ends

    def map(self, values, max_parallel):
        assert max_parallel == 2
        made = FakeHandles(FakeHandle(end, f"{value}0000000-run") for value, end in zip(values, self.ends, strict=True))
        made.function = self
        return made


class FakeHandles(list):
    """A fake of the handles of many calls."""

    def cancel(self):
        self.function.cancelled = True


def test_one_that_fails_costs_the_others_nothing():
    told = []
    ended = call_for_each(FakeFunction(10, ValueError("bad | luck"), 30), [1, 2, 3], 2, told.append)
    assert told == ended
    assert [line_about(one)[0] for one in ended] == [logging.INFO, logging.WARNING, logging.INFO]
    assert "bad | luck" in line_about(ended[1])[1]
    assert [(one.result, type(one.error).__name__) for one in ended] == [
        (10, "NoneType"),
        (None, "ValueError"),
        (30, "NoneType"),
    ]
    table = as_table(ended, lambda run_id: f"http://here/{run_id}")
    assert "| 2 | failed | ValueError: bad \\| luck | [20000000](http://here/20000000-run) |" in table


def test_an_interruption_ends_what_is_under_way():
    function = FakeFunction(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        call_for_each(function, [1], 2)
    assert function.cancelled


class FakeItems:
    """A fake of the items of a campaign; a result that is an interruption is raised."""

    campaign, known, cancelled = None, 1, False

    def __init__(self, ends):
        self.ends = ends

    def results(self, return_exceptions):
        assert return_exceptions
        for end in self.ends:
            if isinstance(end, KeyboardInterrupt):
                raise end
            yield end

    def cancel(self):
        self.cancelled = True


class FakeInPilots:
    """A fake of a decorated function whose values are items."""

    def __init__(self, *ends):
        self.items, self.asked = FakeItems(ends), None

    def typed(self, value):
        return (int(value),), {}

    def campaign_of_new(self, values, **chosen):
        self.asked = values, chosen
        return self.items


def test_items_in_pilots_are_told_like_runs():
    function, told = FakeInPilots(10, ValueError("bad luck")), []
    ended = call_in_pilots(function, ["1", 2], 3, "seed", told.append)
    assert function.asked == ([1, 2], {"key": "seed", "max_pilots": 3}), "values of a form are cast"
    assert [(one.value, one.result, type(one.error).__name__) for one in ended] == [
        ("1", 10, "NoneType"),
        (2, None, "ValueError"),
    ]
    assert "1 of 2 values" in told[0]


def test_an_interruption_ends_the_campaign():
    function = FakeInPilots(10, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        call_in_pilots(function, [1, 2], 2, "")
    assert function.items.cancelled


def test_a_long_table_has_the_failures_first():
    calls = [CampaignValue(number, "", result=number) for number in range(MOST_ROWS + 5)]
    calls[-1] = CampaignValue("last", "", error=ValueError("bad luck"))
    table = as_table(calls, str).splitlines()
    assert "bad luck" in table[2] and table[-1] == "and 5 more"
