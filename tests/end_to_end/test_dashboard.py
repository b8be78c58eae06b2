"""Ray's dashboard on this machine, as a user gets to it."""

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import prepared
from slurm_ray_flow import DependencyError, LocalMachine

pytestmark = [pytest.mark.server, pytest.mark.ray]


@pytest.fixture
def seen(work):
    import shown

    return shown.seen


def test_without_ray_default_the_error_says_what_to_install(seen):
    with pytest.raises(DependencyError, match=r"ray\[default\]"):
        seen()


def test_it_is_led_to_through_a_url_that_needs_no_token(seen, tmp_path, srf):
    before = set(Path("/tmp").glob("pymp-*"))
    machine = LocalMachine(root=tmp_path / "root")
    handle = seen.with_options(cluster=machine, environment=["six==1.17.0"]).submit()
    assert handle.result(180) == 1
    left = set(Path("/tmp").glob("pymp-*")) - before
    assert left == set()
    with prepared.start([prepared.SRF, "dashboard", handle.run_id], stdout=subprocess.PIPE) as process:
        url = process.stdout.readline().strip()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with browser.open(url, timeout=180) as page:
            assert (page.status, "Ray" in page.read().decode()) == (200, True)
        with browser.open(url.partition("?")[0] + "nodes?view=summary", timeout=180) as nodes:
            assert len(json.load(nodes)["data"]["summary"]) == 1
        known = json.loads((tmp_path / "root" / "runs" / handle.run_id / "dashboard.json").read_text())
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{known['address']}/nodes?view=summary", timeout=180)
        assert caught.value.code == 401
        assert known["address"].startswith("127.0.0.1:")
        assert srf("release", handle.run_id).returncode == 0
        assert "has ended" in process.communicate(timeout=180)[0]
    assert "has ended" in srf("dashboard", handle.run_id).stderr


def test_a_run_without_one_says_how_to_have_one(seen, srf, tmp_path):
    handle = seen.with_options(cluster=LocalMachine(root=tmp_path / "root"), dashboard=False, keep_warm=0).submit()
    handle.result(180)
    said = srf("dashboard", handle.run_id)
    assert said.returncode == 1
    assert "dashboard=True" in said.stderr
