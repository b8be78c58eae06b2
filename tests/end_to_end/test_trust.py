"""What `trust` writes down of a server that shows its key, and when it writes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import paramiko
import pytest

import prepared
from pretended import LIMITS, endpoint, showing
from slurm_ray_flow import SshConnection, SshServer
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.blocks.ssh import known_hosts
from slurm_ray_flow.blocks.ssh.trust import trust
from slurm_ray_flow.core.errors import HostKeyFailed

KEY, OTHER = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()


def written(port, key=KEY, marker=""):
    return f"{marker}{known_hosts.written(f'[127.0.0.1]:{port}', key.get_name(), key.asbytes())}"


def trusted(port, *files, agrees=True):
    asked = []
    (shown,) = trust(endpoint(port, files), None, lambda one: not asked.append(one) and agrees, LIMITS, "desi")
    return shown, len(asked)


def test_a_key_is_asked_about_once_and_known_under_its_port(tmp_path):
    file = tmp_path / "known_hosts"
    with showing(KEY) as port:
        shown, asked = trusted(port, file)
        assert (shown.known, asked, shown.fingerprint) == (False, 1, known_hosts.fingerprint(KEY.asbytes()))
        assert file.read_text() == written(port)
        assert trusted(port, file)[1] == 0
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
        assert str(port) not in file.read_text()
        assert trusted(port, file)[1] == 0
        assert len(file.read_text().splitlines()) == 1


def test_a_key_that_is_known_in_a_further_file_is_known(tmp_path):
    with showing(KEY) as port:
        (tmp_path / "second").write_text(written(port))
        shown, asked = trusted(port, tmp_path / "first", tmp_path / "second")
    assert (shown.known, asked, (tmp_path / "first").exists()) == (True, 0, False)


@pytest.mark.parametrize(
    ("key", "marker", "words"),
    [(KEY, "@revoked ", "is revoked"), (OTHER, "", "has changed")],
    ids=["revoked", "changed"],
)
def test_a_key_that_must_not_be_trusted_is_not_asked_about(tmp_path, key, marker, words):
    file = tmp_path / "known_hosts"
    with showing(KEY) as port:
        file.write_text(written(port, key, marker))
        with pytest.raises(HostKeyFailed, match=words) as caught:
            trusted(port, file)
        assert file.read_text() == written(port, key, marker)
    assert "ssh-keygen -R" in caught.value.advice or marker


def test_a_key_that_is_not_confirmed_or_cannot_be_kept_is_an_error(tmp_path):
    file = tmp_path / "known_hosts"
    with showing(KEY) as port:
        with pytest.raises(HostKeyFailed, match="not confirmed"):
            trusted(port, file, agrees=False)
        assert not file.exists()
        with pytest.raises(HostKeyFailed, match="can't be kept"):
            trusted(port, Path("/dev/null"))


@pytest.fixture
def stranger(server, tmp_path):
    """The `srf` of somebody who uses this Prefect server from a home of his own."""
    variables = {
        "SRF_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": server.url,
        "PREFECT_API_AUTH_STRING": auth_string(server_files()),
    }

    def srf(*arguments):
        return prepared.run([prepared.SRF, *arguments], stdin=subprocess.DEVNULL, env={**os.environ, **variables})

    return srf


def save(server, **fields):
    with connected(server):
        SshServer(connection=SshConnection(host="127.0.0.1", port=9), **fields).save("theirs", overwrite=True)


def test_what_somebody_else_has_saved_is_confirmed_before_it_is_used(server, stranger):
    save(server)
    refused = stranger("check", "theirs").stderr
    assert "srf trust theirs --block" in refused and "host: 127.0.0.1" in refused
    unasked = stranger("trust", "theirs", "--block")  # there is no terminal to ask in
    assert unasked.returncode != 0 and "--yes" in unasked.stderr and "--fingerprint" not in unasked.stderr
    assert stranger("trust", "theirs", "--block", "--yes").returncode == 0
    assert "is as you have confirmed it" in stranger("trust", "theirs", "--block").stdout

    save(server, python="/tmp/evil/python")
    refused = stranger("check", "theirs").stderr
    assert "python: /tmp/evil/python" in refused and "host:" not in refused


def test_what_one_has_saved_oneself_is_confirmed(stranger):
    assert stranger("init", "mine", "--host", "127.0.0.1", "--root", "/srv/mine").returncode == 0
    assert "is as you have confirmed it" in stranger("trust", "mine", "--block").stdout


def test_a_cluster_that_can_not_be_read_is_told_as_that_and_hides_no_others(server, stranger):
    save(server)
    api = Api(server.url, auth_string(server_files()))
    stranger("init", "mine", "--host", "127.0.0.1", "--port", "9")
    for saved in api.post("/block_documents/filter", {}):
        if saved["name"] == "theirs" and "connection" in saved["data"]:
            api.patch(f"/block_documents/{saved['id']}", {"data": {"slots": "s3cret"}, "merge_existing_data": False})
    for command in (
        ["check", "theirs"],
        ["trust", "theirs", "--block"],
        ["init", "theirs", "--change", "--slots", "2"],
    ):
        told = stranger(*command)
        assert told.returncode == 2, told.stderr
        assert "srf forget theirs" in told.stderr and "slots" in told.stderr
        assert "Traceback" not in told.stderr and "s3cret" not in told.stderr
    table = stranger("clusters").stdout
    assert "mine" in table and "theirs" in table
    assert stranger("forget", "theirs").returncode == 0
