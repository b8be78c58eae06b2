"""Fixtures for whichever folder the tests are in that use them: one lab each for a whole pytest session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hosts import oar
from hosts.lab import Lab
from hosts.layout import OAR, SLURM


@pytest.fixture(scope="session")
def hosts_lab() -> Iterator[Lab]:
    """Real hosts with real SSH servers. Without root there can be none; with root they are never left out."""
    needs_root()
    lab = Lab.up(f"pytest-{os.getpid()}", owner=os.getpid())
    yield lab
    lab.down()


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[Lab]:
    """A real Slurm that keeps no accounts: `login`, `c1`, `c2`."""
    needs_root()
    lab = Lab.up(f"pytest-slurm-{os.getpid()}", owner=os.getpid(), kinds=SLURM)
    yield lab
    lab.down()


@pytest.fixture(scope="session")
def oar_lab() -> Iterator[Lab]:
    """A real OAR: `frontal`, `o1`, `o2`."""
    needs_root()
    if oar.missing():
        pytest.skip("this machine's Debian has no OAR")
    lab = Lab.up(f"pytest-oar-{os.getpid()}", owner=os.getpid(), kinds=OAR)
    yield lab
    lab.down()


@pytest.fixture(scope="session")
def accounting_lab() -> Iterator[Lab]:
    """The same with slurmdbd and its database: sacct works."""
    needs_root()
    lab = Lab.up(f"pytest-accounting-{os.getpid()}", owner=os.getpid(), kinds=SLURM, accounting=True)
    yield lab
    lab.down()


def needs_root() -> None:
    """Leave a test out where there can be no hosts."""
    if os.geteuid():
        pytest.skip("real hosts are made of namespaces, which takes root")
