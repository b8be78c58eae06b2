"""No test touches the user's own home or Prefect profile."""

import os
import signal
import sys

import pytest

import lanes
import selection
import shared_server

pytest_plugins = ["hosts.plugin", "hangs"]
sys.dont_write_bytecode = False
"""Else each process of each run would rewrite the asserts of all files anew: six seconds of processor."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &`: all that the tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

HOME = shared_server.home_of_this_process()
OTHER_HOME = f"{HOME}-other"
os.environ["SRF_HOME"] = HOME
os.environ["SRF_PROGRESS"] = "off"
os.environ["PREFECT_HOME"] = os.path.join(HOME, "prefect")
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
    os.environ.pop(name, None)


pytest_xdist_make_scheduler = lanes.pytest_xdist_make_scheduler


def pytest_configure(config: pytest.Config) -> None:
    shared_server.clear_after(os.getpid(), HOME, OTHER_HOME)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(selection.Tried())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selection.mark(items)
    if config.getoption("loadgroup", default=False):
        lanes.arrange(items)


@pytest.fixture(scope="module")
def engine(server):
    """The grid's engine, for the campaigns of one file of tests."""
    from slurm_ray_flow.blocks.grid_engine import end_engine, ensure_engine

    yield ensure_engine()
    end_engine()


@pytest.fixture(scope="session")
def server():
    """The Prefect server of all tests, on a home of this process's own."""
    return shared_server.join()


@pytest.fixture(scope="session")
def other_home():
    """A second Prefect server, with a home of its own; gives the variables that lead there."""
    from slurm_ray_flow.blocks.server import ensure_server

    variables = {"SRF_HOME": OTHER_HOME, "PREFECT_HOME": os.path.join(OTHER_HOME, "prefect")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        shared_server.begin_empty(OTHER_HOME)
        ensure_server(print)
    return variables


@pytest.fixture(scope="session")
def srf():
    """The `srf` command; gives its completed process."""
    from srf_command import Command

    return Command()
