"""What an automation of a real Prefect server does when something happens on a cluster."""

import json
import re
import secrets
import socket
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from slurm_ray_flow import LocalMachine, SshConnection, SshServer
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError
from slurm_ray_flow.core.prefect_events import CLUSTER_QUARANTINED, grid_event
from slurm_ray_flow.deployments.notify import notify
from slurm_ray_flow.flows.checkup import checkup
from slurm_ray_flow.grid.announcing import send_to_prefect
from support import wait_for

pytestmark = pytest.mark.server
DOCUMENT = Path(__file__).parents[2] / "docs" / "prefect.md"


@pytest.fixture
def hook():
    """A web hook on loopback; gives its address and what it was told."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{secrets.token_hex(8)}", told
    server.shutdown()
    thread.join()


@pytest.fixture
def automations(api):
    yield
    for one in api.post("/automations/filter", {}):
        if one["name"].startswith("slurm-ray-flow: tell of"):
            api.patch(f"/automations/{one['id']}", {"enabled": False})


def test_a_hook_is_told_of_a_failure_by_its_cause(work, hook, automations, api):
    url, told = hook
    notify("http://127.0.0.1:9/old", on=["run.failed"])
    assert notify(url, on=["run.failed"], causes=["user_code"]) == ["slurm-ray-flow: tell of run.failed"]
    [made] = [one for one in api.post("/automations/filter", {}) if one["name"].endswith("run.failed")]
    assert made["trigger"]["match"] == {"slurm-ray-flow.cause": ["user_code"]}
    shown = json.dumps([api.post("/block_documents/filter", {}), api.post("/automations/filter", {})])
    assert url.rpartition("/")[2] not in shown, "the hook's address is a secret"
    word = f'"{uuid.uuid4().hex}" \\'
    with pytest.raises(Exception, match=word[1:10]):
        work.fail(word)

    def tries():
        return [one for one in told if word in one["text"]]

    wait_for(tries)
    [text] = [one["text"] for one in tries()]
    assert text.startswith("fail on local failed (user_code): HelperError")


def test_a_hook_is_told_of_what_happens_to_campaigns(server, hook, automations):
    url, told = hook
    assert notify(url, on=["grid.quarantined"]) == ["slurm-ray-flow: tell of grid.quarantined"]
    campaign, text = uuid.uuid4().hex, 'most of "them" failed'
    with connected(server):
        send_to_prefect(grid_event(CLUSTER_QUARANTINED, campaign, "sums", text, "slurm-cluster/desi", "error"))
    wait_for(lambda: [one for one in told if campaign[:8] in one["text"]])
    [line] = [one["text"] for one in told if campaign[:8] in one["text"]]
    assert line == f"campaign sums [{campaign[:8]}] on desi: {text}"


def test_the_example_of_the_documents_makes_what_it_says(script, hook, automations, api):
    [text] = re.findall(r"^```python webhook\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    done = script(text.replace("https://hooks.example.org/services/T0/B0", hook[0]))
    assert done.returncode == 0, done.stderr
    [made] = [one for one in api.post("/automations/filter", {}) if one["name"] == "slurm-ray-flow: tell of run.failed"]
    assert made["trigger"]["match"] == {"slurm-ray-flow.cause": ["out_of_memory", "time_limit"]}


def test_a_cluster_that_goes_down_and_comes_back_is_told_once_each(server, hook, automations):
    url, told = hook
    notify(url, on=["cluster.down", "cluster.up"])
    name = f"lab-{uuid.uuid4().hex[:8]}"
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    connection = SshConnection(host="127.0.0.1", port=port, connect_timeout=1, reconnect_within=1)
    with connected(server):
        SshServer(connection=connection).save(name)
        for _ in range(2):
            with pytest.raises(SlurmRayFlowError):
                checkup(name)
        LocalMachine().save(name)  # what has this name now answers
        assert [seen.down for seen in checkup(name)] == [False]
        assert [seen.down for seen in checkup(name)] == [False]
    wait_for(lambda: sum(name in one["text"] for one in told) >= 2)
    texts = sorted(one["text"] for one in told if name in one["text"])
    assert [text.partition(":")[0] for text in texts] == [f"{name} can be used again", f"{name} can't be used"]


def test_what_there_is_nothing_of_is_refused():
    with pytest.raises(OptionError, match=r"cluster\.gone"):
        notify("http://127.0.0.1:9", on=["cluster.gone"])
    with pytest.raises(OptionError, match="bad_luck"):
        notify("http://127.0.0.1:9", causes=["bad_luck"])
