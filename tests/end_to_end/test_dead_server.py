"""A Prefect server that dies under a launch."""

import json
import os
import signal
import time

import pytest

from support import wait_for

pytestmark = pytest.mark.server

SCRIPT = """
import time
from pathlib import Path
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow
def wait(go):
    Path(go + ".started").touch()
    while not Path(go).exists():
        time.sleep(0.05)
    return 42

if __name__ == "__main__":
    import sys
    print("value", wait(sys.argv[1]), flush=True)
"""
ASYNC = (
    SCRIPT.replace("def wait", "async def wait").replace("wait(sys", "asyncio.run(wait(sys").replace("[1])", "[1]))")
)


@pytest.mark.parametrize("text", [SCRIPT, "import asyncio\n" + ASYNC], ids=["sync", "async"])
def test_the_value_comes_home_all_the_same(script, tmp_path, monkeypatch, text):
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    process = script(text, tmp_path / "go", wait=False)
    wait_for((tmp_path / "go.started").exists)
    os.kill(json.loads((tmp_path / "home/server/server.json").read_text())["pid"], signal.SIGKILL)
    (tmp_path / "go").touch()
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=180)
    assert time.monotonic() - began < 20, "neither the value nor the end of the process waits for the server"
    assert "value 42" in stdout
    assert "Prefect's server" in stderr
    assert process.returncode == 0
