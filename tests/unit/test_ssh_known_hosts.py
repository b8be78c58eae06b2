"""Which host keys are known, as OpenSSH's files say it."""

from __future__ import annotations

import base64
import multiprocessing
import os
import subprocess
from pathlib import Path

import pytest

from slurm_ray_flow.blocks.ssh import known_hosts
from slurm_ray_flow.blocks.ssh.known_hosts import KeyVerdict
from slurm_ray_flow.blocks.ssh.trust import append_line
from slurm_ray_flow.core.errors import HostKeyFailed

KEY, OTHER = b"\0\0\0\x0bssh-ed25519" + b"k" * 36, b"\0\0\0\x0bssh-ed25519" + b"o" * 36
TEXT, OTHER_TEXT = base64.b64encode(KEY).decode(), base64.b64encode(OTHER).decode()
FILE = Path("known_hosts")


def judged(line: str, host: str, key: bytes = KEY) -> KeyVerdict:
    return known_hosts.verdict_of(known_hosts.parsed(line, FILE), host, key)


@pytest.mark.parametrize(
    ("names", "host", "verdict"),
    [
        ("desi", "desi", KeyVerdict.KNOWN),
        ("DESI,10.0.0.1", "desi", KeyVerdict.KNOWN),
        ("desi", "DESI", KeyVerdict.KNOWN),
        ("[desi]:2222", "[desi]:2222", KeyVerdict.KNOWN),
        ("[desi]:2222", "desi", KeyVerdict.UNKNOWN),
        ("desi", "[desi]:2222", KeyVerdict.UNKNOWN),
        ("*.unil.ch", "desi.unil.ch", KeyVerdict.KNOWN),
        ("*.unil.ch,!desi.unil.ch", "desi.unil.ch", KeyVerdict.UNKNOWN),
        ("des?", "desi", KeyVerdict.KNOWN),
        ("other", "desi", KeyVerdict.UNKNOWN),
    ],
)
def test_names(names: str, host: str, verdict: KeyVerdict) -> None:
    assert judged(f"{names} ssh-ed25519 {TEXT} a comment\n", host) is verdict


@pytest.mark.parametrize(
    ("line", "key", "verdict"),
    [
        (f"desi ssh-ed25519 {TEXT}", OTHER, KeyVerdict.CHANGED),
        (f"@revoked desi ssh-ed25519 {TEXT}\ndesi ssh-ed25519 {TEXT}", KEY, KeyVerdict.REVOKED),
        (f"@revoked * ssh-ed25519 {TEXT}\ndesi ssh-ed25519 {TEXT}", KEY, KeyVerdict.REVOKED),
        (f"desi ssh-ed25519 {TEXT}\n@revoked desi ssh-ed25519 {OTHER_TEXT}", KEY, KeyVerdict.KNOWN),
        (f"@revoked other ssh-ed25519 {TEXT}", KEY, KeyVerdict.UNKNOWN),
        (f"@nobody-knows desi ssh-ed25519 {TEXT}", KEY, KeyVerdict.UNKNOWN),
        (f"@cert-authority desi ssh-ed25519 {TEXT}", KEY, KeyVerdict.UNKNOWN),
        (f"# desi ssh-ed25519 {TEXT}", KEY, KeyVerdict.UNKNOWN),
        ("desi ssh-ed25519 not-base64!", KEY, KeyVerdict.UNKNOWN),
        ("desi ssh-ed25519", KEY, KeyVerdict.UNKNOWN),
    ],
)
def test_lines(line: str, key: bytes, verdict: KeyVerdict) -> None:
    assert judged(line, "desi", key) is verdict


def test_names_that_openssh_has_hashed(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"[desi]:2222 ssh-ed25519 {TEXT}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "desi" not in file.read_text()
    assert judged(file.read_text(), "[desi]:2222") is KeyVerdict.KNOWN
    assert judged(file.read_text(), "[DESI]:2222") is KeyVerdict.KNOWN
    assert judged(file.read_text(), "desi") is KeyVerdict.UNKNOWN


def test_the_algorithms_of_known_keys_come_first() -> None:
    lines = known_hosts.parsed(f"desi ssh-rsa {TEXT}\ndesi ssh-ed25519 {TEXT}\nother ecdsa-sha2-nistp256 {TEXT}", FILE)
    assert known_hosts.algorithms(lines, "desi") == ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"]


def test_a_written_line_is_read_again_and_printed_as_ssh_keygen_does(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    kind, text = (tmp_path / "key.pub").read_text().split()[:2]
    key = base64.b64decode(text)
    assert judged(known_hosts.written("desi", kind, key), "desi", key) is KeyVerdict.KNOWN
    command = ["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert known_hosts.fingerprint(key) in printed


def test_lines_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("by-hand ssh-ed25519 KEY")
    file.chmod(0o600)
    forked = multiprocessing.get_context("fork")
    together = forked.Barrier(4)

    def add(one: int) -> None:
        together.wait(20)
        for number in range(50):
            append_line(file, f"host-{one}-{number} ssh-ed25519 KEY\n")

    adding = [forked.Process(target=add, args=(one,)) for one in range(4)]
    for process in adding:
        process.start()
    for process in adding:
        process.join(20)
    lines = file.read_text().splitlines()
    assert lines[0] == "by-hand ssh-ed25519 KEY"
    assert sorted(lines[1:]) == sorted(
        f"host-{one}-{number} ssh-ed25519 KEY" for one in range(4) for number in range(50)
    )
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_of_known_hosts_is_made_private_and_one_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        append_line(tmp_path / "ssh" / "known_hosts", "desi ssh-ed25519 KEY\n")
    finally:
        os.umask(before)
    assert (tmp_path / "ssh").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "ssh" / "known_hosts").stat().st_mode & 0o777 == 0o600
    with pytest.raises(HostKeyFailed, match="can't be kept") as caught:
        append_line(tmp_path, "desi ssh-ed25519 KEY\n")
    assert caught.value.where == str(tmp_path)
