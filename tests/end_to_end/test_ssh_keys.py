"""Private keys in the forms that ssh-keygen and OpenSSL write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slurm_ray_flow.blocks.ssh.open_connection import Locked, OpenConnectionError, key_from_file, public_bytes


@pytest.mark.parametrize("passphrase", ["", "open it"])
@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_is_read_in_any_form_and_says_when_it_is_locked(
    tmp_path: Path, kind: str, form: str, passphrase: str
) -> None:
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-m", form, "-N", passphrase, "-f", str(file)], check=True)
    key = key_from_file(file, passphrase or None)
    assert key.get_base64() == (tmp_path / "key.pub").read_text().split()[1]
    assert public_bytes(key)
    for wrong in (None, "wrong") if passphrase else ():
        with pytest.raises(Locked):
            key_from_file(file, wrong)


def test_what_is_no_key_is_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    (tmp_path / "key").chmod(0o600)
    for path in (tmp_path / "key", tmp_path / "none"):
        with pytest.raises(OpenConnectionError, match=str(path)):
            key_from_file(path, None)


def test_a_key_that_others_can_read_is_passed_by(tmp_path: Path) -> None:
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    file.chmod(0o640)
    with pytest.raises(OpenConnectionError, match="chmod 600"):
        key_from_file(file, None)
