"""A site's proxy and our server on loopback."""

import os

import pytest

from slurm_ray_flow.blocks.server.client import pass_by_proxies


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, None),
        ({"https_proxy": "http://proxy:8080"}, "127.0.0.1,localhost"),
        (
            {"HTTP_PROXY": "http://proxy:8080", "NO_PROXY": "site.example, localhost"},
            "site.example,localhost,127.0.0.1",
        ),
        ({"http_proxy": "http://proxy:8080", "no_proxy": "*"}, "*"),
    ],
)
def test_loopback_is_never_asked_through_a_proxy(monkeypatch, before, after):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is taken back after the test
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    pass_by_proxies()
    assert os.environ.get("no_proxy") == after
