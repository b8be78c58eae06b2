"""Values of the libraries that researchers use: there and back, and equal."""

import datetime
import decimal
import fractions
import importlib.util
import pathlib
import zoneinfo

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray
from PIL import Image

from slurm_ray_flow import slurm_ray_flow


class Measured(np.ndarray):
    """An array with an attribute."""

    unit = "?"

    def __array_finalize__(self, other):
        self.unit = getattr(other, "unit", "?")


def measured():
    made = np.arange(3.0).view(Measured)
    made.unit = "m"
    return made


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    mapped = np.memmap(tmp_path_factory.mktemp("mapped") / "data.bin", dtype="float32", mode="w+", shape=(3, 4))
    mapped[:] = np.arange(12).reshape(3, 4)
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None, 3], dtype="Int64"),
            "kind": pd.Categorical(["a", "b", "a"]),
            "text": pd.array(["x", None, "z"], dtype="string"),
            "when": pd.date_range("2026-01-01", periods=3, tz="Europe/Zurich"),
        }
    )
    values = {
        "memmap": mapped,
        "part of a memmap": mapped[1:, ::2],
        "masked": np.ma.masked_array([1.0, 2.0], mask=[False, True], fill_value=7.0),
        "of a subclass": measured(),
        "record": np.array([(1, "a")], dtype=[("number", "i4"), ("name", "U3")]),
        "objects": np.array([1, "a", None], dtype=object),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "numbers": [np.int64(2**62 + 1), np.float32(0.1), np.datetime64("2026-01-01"), np.bool_(True)],
        "frame": frame,
        "index": pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["left", "right"]),
        "intervals": pd.Series(pd.interval_range(0, 3)),
        "sparse": scipy.sparse.csr_matrix(np.eye(3)),
        "labelled": xarray.DataArray(np.eye(2), dims=("x", "y"), coords={"x": [1, 2]}, attrs={"unit": "m"}),
        "image": Image.new("RGB", (4, 3), (1, 2, 3)),
        "path": pathlib.Path("/data/x.csv"),
        "decimal": decimal.Decimal("1.10"),
        "fraction": fractions.Fraction(1, 3),
        "zone": datetime.datetime(2026, 3, 29, 1, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich")),
    }
    if importlib.util.find_spec("torch"):
        import torch

        values["tensor"] = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    if importlib.util.find_spec("polars"):
        import polars

        values["polars"] = polars.DataFrame({"a": [1, None], "b": ["x", "y"]})
    return values


def alike(found, wanted):
    if isinstance(wanted, np.ndarray):
        same = np.array_equal(np.asarray(found), np.asarray(wanted))
        return same and found.dtype == wanted.dtype and np.array_equal(np.ma.getmask(found), np.ma.getmask(wanted))
    if isinstance(wanted, (pd.DataFrame, pd.Series, pd.Index)):
        return found.equals(wanted) and str(getattr(found, "dtypes", "")) == str(getattr(wanted, "dtypes", ""))
    if scipy.sparse.issparse(wanted):
        return (found != wanted).nnz == 0
    if isinstance(wanted, xarray.DataArray):
        return found.identical(wanted)
    return found.equal(wanted) if hasattr(wanted, "equal") else found == wanted


def test_values_come_there_and_back_as_they_were(server, given):
    kinds = {name: type(value).__name__ for name, value in given.items()}

    @slurm_ray_flow(cluster="local")
    def same(values):
        return values, {name: type(value).__name__ for name, value in values.items()}

    back, there = same(given)
    # A part of a file that is mapped is an array of its own when it has left its process.
    expected = {**kinds, "part of a memmap": "ndarray"}
    assert there == expected
    assert {name: type(value).__name__ for name, value in back.items()} == expected
    assert [name for name in given if not alike(back[name], given[name])] == []
    assert back["of a subclass"].unit == "m"


def test_what_the_function_writes_into_a_mapped_file_stands_in_the_file(server, tmp_path):
    values = np.memmap(tmp_path / "data.bin", dtype="int32", mode="w+", shape=(4,))

    @slurm_ray_flow(cluster="local")
    def doubled(values):
        values[:] = [1, 2, 3, 4]
        values.flush()

    doubled(values)
    assert np.memmap(tmp_path / "data.bin", dtype="int32", mode="r").tolist() == [1, 2, 3, 4]
