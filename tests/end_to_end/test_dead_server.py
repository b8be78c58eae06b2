"""A Prefect server that dies under a launch."""

import http.server
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest

import prepared
from shared_server import begin_empty
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
    begin_empty(tmp_path / "home")
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    process = script(text, tmp_path / "go", wait=False)
    wait_for((tmp_path / "go.started").exists)
    os.kill(json.loads((tmp_path / "home/server/server.json").read_text())["pid"], signal.SIGKILL)
    (tmp_path / "go").touch()
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=180)
    assert time.monotonic() - began < 45, "neither the value nor the end of the process waits for the server"
    assert "value 42" in stdout
    assert "Prefect's server" in stderr
    assert process.returncode == 0


def test_who_listens_at_the_port_of_a_server_that_died_hears_nothing_from_a_launch(script, tmp_path, monkeypatch):
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    process = script(SCRIPT, tmp_path / "go", wait=False)
    wait_for((tmp_path / "go.started").exists)
    state = json.loads((tmp_path / "home/server/server.json").read_text())
    for pid in (state["supervisor_pid"], state["pid"]):
        os.kill(pid, signal.SIGKILL)
    heard = []
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_for(lambda: _listens(stranger, state["port"]))
        threading.Thread(target=_hear, args=(stranger, heard), daemon=True).start()
        (tmp_path / "go").touch()
        stdout, stderr = process.communicate(timeout=180)
        assert "value 42" in stdout, stderr
        socket.create_connection(("127.0.0.1", state["port"])).close()  # he does hear who comes
        wait_for(lambda: heard)
    assert heard == [b""]


def _listens(stranger, port):
    try:
        stranger.bind(("127.0.0.1", port))
    except OSError:
        return False
    stranger.listen()
    return True


def _hear(stranger, heard):
    while True:
        try:
            connection, _ = stranger.accept()
        except OSError:
            return
        heard.append(connection.recv(65536))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Has somebody else's server configured, which answers with a status; or nobody listens there."""
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    started = []

    def configure(status):
        if status:
            started.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            started[-1].status = status
            threading.Thread(target=started[-1].serve_forever, args=(0.01,), daemon=True).start()
            port = started[-1].server_address[1]
        else:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                port = gone.getsockname()[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://me:secret@127.0.0.1:{port}/api")

    yield configure
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [None, 401, 404])
def test_a_configured_server_that_is_not_there_is_told_in_a_few_lines(script, configured, status):
    configured(status)
    done = script(SCRIPT, "nowhere")
    assert done.returncode == 1
    assert "ServerError" in done.stderr
    assert "httpx" not in done.stderr and "secret" not in done.stderr
    assert len(done.stderr.splitlines()) < 12
    assert ("AUTH_STRING" in done.stderr) == (status == 401)


@pytest.mark.parametrize(
    ("verb", "status"),
    [("clusters", None), ("clusters", 404), ("init x --host localhost --yes", None), ("forget x", 401), ("up", None)],
)
def test_a_verb_that_needs_a_configured_server_says_that_it_is_not_there(configured, verb, status):
    configured(status)
    command = [sys.executable, "-m", "slurm_ray_flow.cli.main", *verb.split()]
    done = prepared.run(command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ServerError: ")
    assert len(done.stderr.splitlines()) == 3
