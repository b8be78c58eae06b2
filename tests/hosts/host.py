"""One host of a lab, seen from outside."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hosts.layout import Kind
from hosts.machine import LabError, arguments_of, pids, until
from hosts.place import Place, address

ENTER = ("-m", "-u", "-i", "-n", "-p")


@dataclass(frozen=True)
class Host:
    """A host that is up."""

    place: Place
    kind: Kind
    base: str

    @property
    def name(self) -> str:
        """Its host name, and its name in the lab's ssh_config."""
        return self.kind.name

    @property
    def folder(self) -> Path:
        """What the host is made from, on the machine's side."""
        return self.place.folder / self.name

    @property
    def pid(self) -> int:
        """Its first process; when that is killed, all its processes die."""
        return int((self.folder / "pid").read_text())

    @property
    def address(self) -> str:
        """Its first network address."""
        return address(self.base, self.kind, self.kind.networks[0])

    def address_of(self, other: Host) -> str:
        """Where this host finds another one: behind the walls, if both stand there."""
        shared = [one for one in self.kind.networks if one in other.kind.networks]
        return address(self.base, other.kind, shared[-1]) if shared else other.address

    def path(self, path: str | Path) -> Path:
        """A path of the host as this machine sees it."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def processes(self) -> dict[int, list[str]]:
        """What runs on the host besides its first process: arguments by this machine's process id."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        return {pid: arguments_of(pid) for pid in pids() if pid != self.pid and namespace(pid) == own}

    def run(
        self,
        user: str,
        argv: Sequence[str],
        *,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 180.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as a user, without SSH."""
        site = self.path("/etc/environment").read_text().splitlines()
        settings = [*site, *(f"{name}={value}" for name, value in (env or {}).items())]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env", "env", *settings]
        home = "/root" if user == "root" else f"/home/{user}"
        whole = ["nsenter", "-t", str(self.pid), *ENTER, f"--wdns={home}", "--", *become, *argv]
        done = subprocess.run(whole, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise LabError(f"{self.name}: {' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def log(self) -> str:
        """What sshd wrote."""
        try:
            return (self.folder / "var/log/sshd.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def connections(self) -> int:
        """How many connections sshd has had so far."""
        return self.log().count("Connection from ")

    def logins(self, user: str = "") -> int:
        """How many log-ins have succeeded so far, of all users or of one."""
        wanted = f" for {user} from " if user else " for "
        return sum(line.startswith("Accepted ") and wanted in line for line in self.log().splitlines())

    def new_code(self, user: str) -> str:
        """A fresh one-time code, as a telephone would show it but longer: six digits stand in many a file."""
        code = f"{secrets.randbelow(10**12):012}"
        file = self.path(f"/run/one-time-codes/{user}")
        file.write_text("\n".join([*(file.read_text().split() if file.exists() else []), code]))
        return code

    def start_sshd(self) -> None:
        """Start the SSH server and wait until it listens."""
        with self._listening_anew():
            if self.run("root", ["/usr/sbin/sshd", "-E", "/var/log/sshd.log"], check=False).returncode:
                raise LabError(f"sshd does not start on {self.name}: {self.log()[-500:]}")

    def reload_sshd(self) -> None:
        """Let the SSH server read its settings again; connections stay."""
        with self._listening_anew():
            os.kill(self.sshd(), signal.SIGHUP)

    @contextlib.contextmanager
    def _listening_anew(self) -> Iterator[None]:
        before = self.log().count("Server listening on 0.0.0.0")
        yield
        until(lambda: self.log().count("Server listening on 0.0.0.0") > before, f"sshd listens on {self.name}")
        until(lambda: self._sshd() is not None, f"sshd can be told to read its settings on {self.name}")

    def sshd(self) -> int:
        """The process of the SSH server."""
        found = self._sshd()
        if found is None:
            raise LabError(f"no sshd runs on {self.name}")
        return found

    def _sshd(self) -> int | None:
        """It calls itself a listener only when a signal to read its settings no longer ends it."""
        with contextlib.suppress(FileNotFoundError):  # it is away while sshd starts
            inside = self.path("/run/sshd.pid").read_text().strip()
            listeners = [pid for pid, argv in self.processes().items() if argv and "[listener]" in argv[0]]
            return next((pid for pid in listeners if inner_pid(pid) == inside), None)
        return None

    def kill(self) -> None:
        """Pull the plug: all processes of the host die at once."""
        os.kill(self.pid, signal.SIGKILL)


def namespace(pid: int) -> str:
    """The process namespace that a process is in; empty when the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def inner_pid(pid: int) -> str:
    """The id that a process has on its host."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return status.partition("NSpid:")[2].split("\n")[0].split()[-1]
