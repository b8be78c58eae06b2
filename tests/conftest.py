"""No test touches the user's own home or Prefect profile."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

pytest_plugins = ["hosts.plugin"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &`: all that the tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

HOME = tempfile.mkdtemp(prefix="srf-test-")
OTHER_HOME = f"{HOME}-other"
os.environ["SRF_HOME"] = HOME
os.environ["SRF_PROGRESS"] = "off"
os.environ["PREFECT_HOME"] = os.path.join(HOME, "prefect")
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

# Begun with the session, for one that is interrupted or killed leaves its servers, too. They go after it: Prefect's
# client holds a process back for a minute at its end when the server has gone before it.
LAST = """
import os, shutil, sys, time
while os.path.exists(f"/proc/{sys.argv[1]}") and os.getppid() == int(sys.argv[1]):
    time.sleep(0.2)
from slurm_ray_flow.blocks.server import stop_server
for home in filter(os.path.isdir, sys.argv[2:]):
    os.environ["SRF_HOME"] = home
    stop_server()
    os.system(f"chmod -R u+w {home}")
    shutil.rmtree(home, ignore_errors=True)
"""


def pytest_configure(config: pytest.Config) -> None:
    subprocess.Popen([sys.executable, "-c", LAST, str(os.getpid()), OTHER_HOME, HOME], start_new_session=True)


@pytest.fixture(scope="session")
def server():
    """One Prefect server for all tests that need one, on a home of its own."""
    from slurm_ray_flow.blocks.server import ensure_server

    return ensure_server(print)


@pytest.fixture(scope="session")
def other_home():
    """A second Prefect server, with a home of its own; gives the variables that lead there."""
    from slurm_ray_flow.blocks.server import ensure_server

    variables = {"SRF_HOME": OTHER_HOME, "PREFECT_HOME": os.path.join(OTHER_HOME, "prefect")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        ensure_server(print)
    return variables


@pytest.fixture(scope="session")
def srf():
    """The `srf` command; gives its completed process."""
    from srf_command import Command

    command = Command()
    yield command
    command.close()
