"""No test touches the user's own home or Prefect profile."""

import os
import shutil
import tempfile

import pytest

_HOME = tempfile.mkdtemp(prefix="srf-test-")
os.environ["SRF_HOME"] = _HOME
os.environ["SRF_PROGRESS"] = "off"
os.environ["PREFECT_HOME"] = os.path.join(_HOME, "prefect")
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
    os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
