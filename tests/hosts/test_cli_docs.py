"""The document of the command, line by line: each command that it shows runs, in its order, against a real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prepared
from hosts.lab import Lab
from prepared import SRF
from srf_command import Command

pytestmark = pytest.mark.server
TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
LINES = re.findall(r"^\$ srf (.+)$", TEXT, re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that the document shows."""
    (source,) = re.findall(r"^```python title=\"train.py\"\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.py").write_text(source)
    return tmp_path


@pytest.fixture
def desi(server: Any, srf: Command, hosts_lab: Lab, tmp_path: Path) -> list[str]:
    """What else the first line needs, so that it is the lab's server that is saved."""
    config = tmp_path / "ssh_config"
    address, key = hosts_lab["desi"].address, hosts_lab.key("alice")
    config.write_text(f"Host desi.example.org\n  HostName {address}\n  IdentityFile {key}\n")
    return ["--config-file", str(config), "--known-hosts", str(hosts_lab.known_hosts), "--overwrite"]


def test_every_command_of_the_document_does_what_it_says(project: Path, desi: list[str], srf: Command) -> None:
    assert len(LINES) > 25
    newest = ""
    for line in LINES:
        words = [newest if word == "RUN" else word for word in shlex.split(line)]
        if words[:2] == ["init", "desi"] and "--change" not in words:
            words += desi
        if "--watch" in words:
            watched(project, words)
            continue
        done = srf(*words, cwd=str(project))
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "--json" in words:
            json.loads(done.stdout)
        if words[0] == "run":
            newest = json.loads(srf("runs", "--last", "1", "--json").stdout)[0]["run_id"][:8]


def watched(project: Path, words: list[str]) -> None:
    """It goes on until Ctrl-C."""
    process = prepared.start([SRF, *words], cwd=project, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert "until Ctrl-C" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 130
    finally:
        process.kill()


def test_the_settings_are_ones() -> None:
    from slurm_ray_flow.core.config import parse_table

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    (table,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    found = parse_table(tomllib.loads(table)["tool"]["slurm-ray-flow"], Path("pyproject.toml"))
    assert found.of("curnagl")["memory"].value == 64 * 1024**3
    assert found.of("desi")["cluster"].value == "desi"


def test_the_exit_codes_are_those_of_the_help() -> None:
    from slurm_ray_flow.cli.main import EXIT_CODES

    shown = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert shown == [str(code) for code in EXIT_CODES]


def test_every_verb_is_there() -> None:
    from slurm_ray_flow.cli.main import app

    verbs = set(app) - {"--help", "-h", "--version"}
    assert verbs == set(re.findall(r"`srf ([a-z]+)", TEXT))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_the_verbs(srf: Command, tmp_path: Path) -> None:
    (tmp_path / "srf.bash").write_text(srf("completion", "bash").stdout)
    script = (
        f"source {tmp_path}/srf.bash; COMP_WORDS=(srf cl); COMP_CWORD=1; COMP_LINE='srf cl'; COMP_POINT=6; "
        "$(complete -p srf | sed 's/.*-F \\([^ ]*\\).*/\\1/') srf cl srf; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    assert {"clean", "clusters"} <= set(done.stdout.split()), done.stdout + done.stderr
