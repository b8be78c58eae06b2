"""A root folder and a run's name for each test of the head."""

import os

import pytest

from remote_lab import Lab

counter = iter(range(1_000_000))


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "root")
    yield lab
    lab.close()


@pytest.fixture
def name():
    """A run id that no other process of this machine carries."""
    return f"run-{os.getpid()}-{next(counter)}"
