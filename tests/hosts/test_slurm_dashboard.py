"""Ray's dashboard on a node of Slurm, reached from home through the login node; and who gets in to Ray there."""

import json
import urllib.request

import pytest

from hosts.launcher import USER

pytestmark = [pytest.mark.server, pytest.mark.ray]

ASK = "from ray._raylet import GcsClient; print(GcsClient({!r}).internal_kv_keys(b'', None, 10))"


def ask_ray(jobs, run_id, node, token):
    """What Ray answers on a node to who comes with this token."""
    folder = jobs.host.path(f"{jobs.root}/runs/{run_id}")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (address,) = [event["address"] for event in events if event["event"] == "ray_ready"]
    python = json.loads((folder / "spec.json").read_text())["python"]
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = node.run(USER, [python, "-c", ASK.format(address)], env=variables, check=False)
    return done.stdout + done.stderr


def listening(node):
    """The addresses on which anything but Slurm listens there."""
    lines = node.run("root", ["ss", "-ltnpH"]).stdout.splitlines()
    return {line.split()[3].rpartition(":")[0] for line in lines if '"slurmd"' not in line}


@pytest.mark.parametrize("nodes", [1, 2])
def test_it_is_reached_through_the_one_connection(jobs, nodes):
    import held

    folder = jobs.folder()
    wanted = {"nodes": nodes, "cpus_per_node": 1, "memory": "2G", "keep_warm": "5m", "dashboard": True}
    handle = jobs.on(held.note, **wanted).submit(folder)
    assert handle.result(240) == "<noted>"
    process = jobs.srf("dashboard", handle.run_id)
    url = process.stdout.readline().strip()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(url, timeout=180) as page:
        assert page.status == 200
    with browser.open(url.partition("?")[0] + "nodes?view=summary", timeout=180) as answer:
        summary = json.load(answer)["data"]["summary"]
    assert len(summary) == nodes
    address = json.loads(jobs.host.path(f"{jobs.root}/runs/{handle.run_id}/dashboard.json").read_text())["address"]
    asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}/nodes?view=summary"]
    assert jobs.host.run(USER, asked).stdout.strip() == "401"
    node = jobs.lab[jobs.job(handle.run_id)["BatchHost"]]
    (token,) = node.path("/tmp").glob("srf-*/token")
    refused = ask_ray(jobs, handle.run_id, node, "0" * 64)
    assert "auth" in refused.lower()
    assert "[b'" not in refused
    assert "[b'" in ask_ray(jobs, handle.run_id, node, token.read_text())
    if nodes == 1:  # of several, Ray's own programs listen on all addresses of their nodes
        assert not listening(node) & {"*", "0.0.0.0", "[::]"}
    said, _ = jobs.srf("release", handle.run_id).communicate(timeout=180)
    assert "released run" in said
    assert "has ended" in process.communicate(timeout=180)[0]
    jobs.over()
