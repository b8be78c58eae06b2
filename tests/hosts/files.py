"""What stands in a host's own files: accounts, log-in rules, names, noise."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hosts.layout import Account, Kind
from hosts.machine import command

HERE = Path(__file__).resolve().parent
BANNER = "Zugang nur für Befugte · accès réservé · 立入禁止 ☢\n"
MOTD = "Maintenance on Monday; your quota is 97 % full, dear user.\n"
NOISE = """echo "loading modules ... é"
echo "warning: your .bashrc talks to stderr, too" >&2
"""
SSHD = """Include /etc/ssh/faults.conf
Port 22
HostKey /etc/ssh/lab_ed25519
HostKey /etc/ssh/lab_ecdsa
PidFile /run/sshd.pid
LogLevel VERBOSE
UsePAM yes
UseDNS no
Banner /etc/issue.net
PrintMotd yes
PermitRootLogin no
AuthorizedKeysFile /etc/ssh/keys/%u
Subsystem sftp /usr/lib/openssh/sftp-server
AuthenticationMethods none
"""
METHODS = {
    "key": "publickey",
    "password": "password",
    "password+code": "keyboard-interactive:pam",
    "key+code": "publickey,keyboard-interactive:pam",
}
PAM = """auth [success=1 default=ignore] pam_succeed_if.so quiet user ingroup keyandcode
auth requisite pam_unix.so nodelay
auth [success=ignore default=1] pam_succeed_if.so quiet user ingroup onetimecode
auth requisite pam_python.so /etc/security/one_time_code.py
auth required pam_permit.so
account required pam_unix.so
session required pam_env.so
session required pam_unix.so
session optional pam_motd.so motd=/etc/motd
password required pam_deny.so
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file and the folders above it, with this mode whatever the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def system(name: str) -> str:
    """The machine's own service accounts or groups, without people."""
    lines = Path(f"/etc/{name}").read_text().splitlines()
    return "".join(line + "\n" for line in lines if not 1000 <= int(line.split(":")[2]) < 60000)


def accounts(etc: Path, people: tuple[Account, ...]) -> None:
    """The host's own passwd, group and shadow."""
    passwd = "".join(f"{one.name}:x:{one.uid}:{one.uid}::{one.home}:{one.shell}\n" for one in people)
    groups = "".join(f"{one.name}:x:{one.uid}:\n" for one in people)
    coded = ",".join(one.name for one in people if "code" in one.method)
    keyed = ",".join(one.name for one in people if one.method == "key+code")
    locked = system("passwd").replace(":", "\n").splitlines()[::7] + [one.name for one in people]
    write(etc / "passwd", system("passwd") + passwd)
    write(etc / "group", system("group") + groups + f"onetimecode:x:2998:{coded}\nkeyandcode:x:2999:{keyed}\n")
    write(etc / "shadow", "".join(f"{name}:*:19000:0:99999:7:::\n" for name in locked), 0o600)
    write(etc / "gshadow", "", 0o600)


def log_in_rules(etc: Path, kind: Kind) -> None:
    """What sshd and PAM ask whom for."""
    matches = [f"Match User {one.name}\n  AuthenticationMethods {METHODS[one.method]}\n" for one in kind.accounts]
    write(etc / "ssh/sshd_config", SSHD + "".join(matches))
    write(etc / "ssh/faults.conf", "")
    write(etc / "pam.d/sshd", PAM)
    write(etc / "security/one_time_code.py", (HERE / "one_time_code.py").read_text())
    write(etc / "issue.net", BANNER)
    write(etc / "motd", MOTD)
    for kind_of_key in ("ed25519", "ecdsa"):
        key(etc / f"ssh/lab_{kind_of_key}", kind_of_key, kind.name)


def key(path: Path, kind: str, comment: str) -> str:
    """A new key pair; its public part."""
    command("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", str(path))
    return path.with_name(path.name + ".pub").read_text()


def folders(folder: Path) -> None:
    """What a host has of its own."""
    for name in ("root", "tmp", "var/tmp", "var/log", "var/spool", "opt", "etc", "usr.local/bin"):
        (folder / name).mkdir(parents=True, mode=0o755)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
        (folder / name).chmod(mode)


def homes(folder: Path, people: tuple[Account, ...]) -> None:
    """A private home for each account, with noise where there is to be some."""
    folder.mkdir(parents=True, mode=0o755)
    for one in people:
        home = folder / one.name
        home.mkdir(mode=0o700)
        if one.noisy:
            noise = NOISE if one.shell.endswith("bash") else 'echo "loading modules ... é"\n'
            write(home / (".bashrc" if one.shell.endswith("bash") else ".cshrc"), noise)
        for path in (home, *home.iterdir()):
            os.chown(path, one.uid, one.uid)


def pythons() -> dict[str, str]:
    """Home's Python and its siblings, each by the name it gets on the hosts: /opt/python/<name>."""
    base = Path(sys.base_prefix).resolve()
    found = {} if base in {Path("/usr"), Path("/usr/local")} else {base.name: str(base)}  # those are there anyway
    if base.parent.name in ("versions", "python"):
        found |= {one.name: str(one) for one in base.parent.iterdir() if list(one.glob("bin/python3.*"))}
    return found


def tools(folder: Path, found: Mapping[str, str]) -> None:
    """Put the Pythons on everybody's PATH, and say where their libraries are.

    By scripts: a link would make an environment built from it look for its standard library beside the link.
    """
    for name, source in found.items():
        for program in Path(source).glob("bin/python3.[0-9]*"):
            start = folder / "usr.local/bin" / program.name
            if program.name.rpartition(".")[2].isdecimal() and not start.exists():
                write(start, f'#!/bin/sh\nexec /opt/python/{name}/bin/{program.name} "$@"\n', 0o755)
    write(folder / "etc/ld.so.conf.d/pythons.conf", "".join(f"/opt/python/{name}/lib\n" for name in found))


def registry_settings(etc: Path, variables: Mapping[str, str]) -> None:
    """What the host's programs must know to reach the package registry as home's do; nothing without `variables`."""
    write(etc / "environment", "".join(f"{name}={value}\n" for name, value in variables.items()))
    for own, there in ((".config/pip/pip.conf", "xdg/pip/pip.conf"), (".config/uv/uv.toml", "uv/uv.toml")):
        if variables and (Path.home() / own).exists():
            write(etc / there, (Path.home() / own).read_text())
