"""The file format of functions, arguments and outcomes."""

import hashlib
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from slurm_ray_flow.remote.shared import payload, pickling


@pytest.mark.parametrize("value", [None, {"a": [1, "two"]}, b"x" * 100_000, list(range(10_000)), ""])
def test_what_is_written_is_read(tmp_path, value):
    path = str(tmp_path / "p")
    digest, size = payload.write(path, value)
    assert payload.read(path, sha256=digest) == value
    data = (tmp_path / "p").read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, size)
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize("dump_load", [(payload.plain_dump, payload.plain_load), (pickling.dump, pickling.load)])
def test_arrays_travel_beside_the_pickle_and_come_back_writable(tmp_path, dump_load):
    path, arrays = str(tmp_path / "p"), [np.arange(1_500_000.0), np.arange(7, dtype="u1"), np.zeros((0, 3))]
    digest, _ = payload.write(path, arrays, dump_load[0])
    back = payload.read(path, dump_load[1], sha256=digest)
    for left, right in zip(arrays, back, strict=True):
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)
    back[0][0] = 5.0
    data = (tmp_path / "p").read_bytes()
    assert data.index(arrays[0].tobytes()[:4096]) % payload.ALIGNMENT == 0


def test_arrays_that_are_not_contiguous_travel_too(tmp_path):
    array = np.arange(100).reshape(10, 10)[::2, ::3]
    payload.write(str(tmp_path / "p"), array)
    assert np.array_equal(payload.read(str(tmp_path / "p")), array)


@pytest.mark.parametrize("length", [0, 3, 11, 40, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path, length):
    path = tmp_path / "p"
    payload.write(str(path), np.arange(100))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(payload.DamagedPayload):
        payload.read(str(path))


def test_another_digest_is_refused_before_anything_is_unpickled(tmp_path):
    path = str(tmp_path / "p")
    payload.write(path, 1)
    with pytest.raises(payload.DamagedPayload, match="digest"):
        payload.read(path, load=lambda *_: pytest.fail("it was unpickled"), sha256="0" * 64)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    "value", [os.urandom(48 << 20), bytearray(48 << 20), [os.urandom(24 << 20), os.urandom(24 << 20)]]
)
def test_what_is_large_within_the_pickle_is_in_memory_once(tmp_path, value, checked):
    path = str(tmp_path / "p")
    digest, size = payload.write(path, value)
    tracemalloc.start()
    try:
        back = payload.read(path, sha256=digest if checked else None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert back == value
    assert peak < size + 3 * payload.CHUNK


def test_a_large_pickle_is_checked_before_anything_is_unpickled(tmp_path):
    path = tmp_path / "p"
    digest, size = payload.write(str(path), b"x" * (3 * payload.CHUNK))
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"y")
    with pytest.raises(payload.DamagedPayload, match="digest"):
        payload.read(str(path), load=lambda *_: pytest.fail("it was unpickled"), sha256=digest)


def test_what_cannot_be_pickled_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "p")
    payload.write(path, 1)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        payload.write(path, lambda: None)
    assert payload.read(path) == 1
    assert os.listdir(tmp_path) == ["p"]


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        payload.write(str(tmp_path / "missing" / "p"), 1)
    assert os.listdir(tmp_path) == []
