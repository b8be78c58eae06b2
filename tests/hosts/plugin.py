"""The fixture `hosts_lab`: one lab for a whole pytest session, in whichever folder the tests are that use it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hosts.lab import Lab


@pytest.fixture(scope="session")
def hosts_lab() -> Iterator[Lab]:
    """Real hosts with real SSH servers. Without root there can be none; with root they are never left out."""
    if os.geteuid():
        pytest.skip("real hosts are made of namespaces, which takes root")
    lab = Lab.up(f"pytest-{os.getpid()}", owner=os.getpid())
    yield lab
    lab.down()
