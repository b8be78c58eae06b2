"""A second machine of the same user: a host's network, processes and name, with home's own files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from hosts.host import Host
from hosts.lab import Lab
from prepared import SRF

NAMESPACES = ("-u", "-i", "-n", "-p")
SET_UP = """
set -e
mount -t proc proc /proc
mount --bind "$1" /proc/sys/kernel/random/boot_id
mount --bind "$2" /etc/ssh/ssh_config
eval "$3"
echo up
exec sleep 600
"""


class Twin:
    """It has a boot of its own, as another machine has; `mounts` is what it mounts besides, as a shell takes it."""

    def __init__(self, lab: Lab, host: Host, folder: Path, srf_home: Path, mounts: str = ":") -> None:
        self.host, self.srf_home = host, srf_home
        boot = folder / f"boot-{host.name}"
        boot.write_text(f"{uuid.uuid4()}\n")
        enter = ["nsenter", "-t", str(host.pid), *NAMESPACES, "--", "unshare", "-m", "sh", "-c", SET_UP, "sh"]
        self._first = subprocess.Popen(
            [*enter, str(boot), lab.ssh_config, mounts], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "up\n"
        own = os.readlink(f"/proc/{host.pid}/ns/pid")
        inside = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        [self._pid] = [int(pid) for pid in inside if os.readlink(f"/proc/{pid}/ns/pid") == own]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program there."""
        pipe = subprocess.PIPE
        environment = {**os.environ, "SRF_HOME": str(self.srf_home), "SRF_PROGRESS": "plain"}
        enter = ["nsenter", "-t", str(self._pid), "-m", *NAMESPACES, "--"]
        return subprocess.Popen([*enter, *command], stdout=pipe, stderr=pipe, text=True, env=environment)

    def run(self, *command: str, timeout: float = 120.0) -> str:
        """Run a program there to its end, and give what it printed."""
        process = self.start(*command)
        said, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{said}\n{errors}"
        return said

    def srf(self, *arguments: str) -> str:
        """A command of ours there."""
        return self.run(SRF, *arguments)

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        """A script of the user's there."""
        return self.start(sys.executable, *arguments)

    def kill(self) -> None:
        """All that was started there dies at once, but nothing of the host itself."""
        for pid in self.host.processes():
            with contextlib.suppress(OSError):
                if str(self.srf_home).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def off(self) -> None:
        """End it."""
        self.kill()
        os.kill(self._pid, signal.SIGKILL)
        self._first.communicate(timeout=60)


@contextlib.contextmanager
def twins(lab: Lab, names: Sequence[str], folder: Path, srf_home: Path, mounts: str = ":") -> Iterator[list[Twin]]:
    """Several, that share a home."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in names:
            twin = Twin(lab, lab[name], folder, srf_home, mounts)
            stack.callback(twin.off)
            found.append(twin)
        yield found
