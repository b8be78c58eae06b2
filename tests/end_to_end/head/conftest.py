"""A root folder and a run's name for each test of the head."""

import os

import pytest

from lock_lab import LockLab
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


@pytest.fixture
def locked():
    """A lock of its own, several users' root folders, and heads under it."""
    lab = LockLab()
    yield lab
    lab.close()
