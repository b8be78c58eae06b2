"""Ray's dashboard on a node of Slurm, reached from home through the login node."""

import json
import urllib.request

import pytest

from hosts.launcher import USER

pytestmark = [pytest.mark.server, pytest.mark.ray]


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
    with browser.open(url, timeout=30) as page:
        assert page.status == 200
    with browser.open(url.partition("?")[0] + "nodes?view=summary", timeout=30) as answer:
        summary = json.load(answer)["data"]["summary"]
    assert len(summary) == nodes
    address = json.loads(jobs.host.path(f"{jobs.root}/runs/{handle.run_id}/dashboard.json").read_text())["address"]
    asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}/nodes?view=summary"]
    assert jobs.host.run(USER, asked).stdout.strip() == "401"
    said, _ = jobs.srf("release", handle.run_id).communicate(timeout=60)
    assert "released run" in said
    assert "has ended" in process.communicate(timeout=60)[0]
    jobs.over()
