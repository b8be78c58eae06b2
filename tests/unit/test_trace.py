"""SRF_LOG=debug: what is shown of a request, and what never is."""

import re
import subprocess
import sys

import pytest

from slurm_ray_flow.core.trace import harmless, requests_shown, traced

SCRIPT = """
from slurm_ray_flow.core.trace import traced
with traced("desi", lambda: "files.read /a"):
    pass
try:
    with traced("desi", lambda: "files.read /b"):
        raise OSError
except OSError:
    pass
"""


@pytest.mark.parametrize("level", ["debug", "DEBUG", "", "info"])
def test_lines_come_where_they_are_asked_for(level):
    command, environment = [sys.executable, "-c", SCRIPT], {"SRF_LOG": level}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    if level.lower() != "debug":
        assert lines == []
        return
    first, second = lines
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  desi +\d+\.\d ms  files.read /a", first)
    assert second.endswith("files.read /b  OSError")


def test_what_it_costs_where_nobody_wants_it(monkeypatch):
    monkeypatch.delenv("SRF_LOG", raising=False)
    with traced("desi", lambda: pytest.fail("it was described")):
        pass


def test_of_a_request_names_and_places_are_shown():
    requests = [
        ("files.write", {"path": "/root/a b", "data": b"secret"}),
        ("commands.run", {"argv": ["ls", "a b"], "timeout": 3}),
        ("environments.build", {"spec": {"variables": {"TOKEN": "secret"}}}),
    ]
    assert requests_shown(requests) == "files.write /root/a b; commands.run ls 'a b'; environments.build"


def test_log_in_data_and_variables_are_left_out():
    assert harmless("uv --index https://me:secret@example.org/simple") == "uv --index https://...@example.org/simple"
    assert harmless("sbatch --export=TOKEN=secret,A=b x.sh") == "sbatch --export=... x.sh"
    assert len(harmless("x" * 10_000)) < 500
